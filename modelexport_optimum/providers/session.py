"""Sessions of ONNX Runtime on a provider: all of them are made here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.providers.choice import CPU
from modelexport_optimum.providers.plugins import devices_of
from modelexport_optimum.system.files import is_utf8

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import onnxruntime

    from modelexport_optimum.providers.choice import Provider

_RECORD = "session.record_ep_graph_assignment_info"
"""Option of ONNX Runtime 1.24 and newer to record the provider of each node (ignored before)."""

_FATAL = 4
"""ONNX Runtime's log level without any messages."""

KERNEL = "_kernel_time"
"""The end of a kernel's name in ONNX Runtime's profile."""


@dataclass(frozen=True, slots=True)
class AssignedNode:
    """A node that a provider took; its name may be ""."""

    provider: str
    name: str
    op_type: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """The provider of each node of one graph.

    Attributes:
        provider: The requested provider.
        nodes: The nodes.
        recorded: Whether this is ONNX Runtime's own record; otherwise only the nodes that ran.
        reason: Why the provider took no node, if it said so.
    """

    provider: str
    nodes: tuple[AssignedNode, ...]
    recorded: bool
    reason: str = ""


def quiet_options(*, recorded: bool = False) -> onnxruntime.SessionOptions:
    """Return options of a session that logs nothing; its errors are exceptions."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    if recorded:
        record_assignment(options)
    return options


def unfused_options() -> onnxruntime.SessionOptions:
    """Return options of a session that logs nothing and runs the graph's own nodes."""
    import onnxruntime as ort

    options = quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def record_assignment(options: onnxruntime.SessionOptions) -> None:
    """Make a session record the provider of each node."""
    options.add_session_config_entry(_RECORD, "1")


def save_built(options: onnxruntime.SessionOptions, path: Path) -> None:
    """Make a session write the graph that it builds, and its weights into a file beside it."""
    options.optimized_model_filepath = str(path)
    weights = "session.optimized_model_external_initializers_file_name"
    options.add_session_config_entry(weights, "weights")


def add_plugin(options: onnxruntime.SessionOptions, provider: Provider) -> None:
    """Add a plugin to the options of a new session.

    The session must then be made without a list of providers.

    Raises:
        ModelExportError: Its library cannot be loaded, or it has no device here.
    """
    assert provider.library is not None
    options.add_provider_for_devices(
        devices_of(provider.name, provider.library), dict(provider.options)
    )


def open_session(
    model: str | bytes, provider: Provider, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """Make a session on a provider; nodes that it does not take run on the CPU.

    A plugin is added to the options.

    Raises:
        ModelExportError: The provider's library cannot be loaded, or the model's path is not UTF-8.
        Exception: ONNX Runtime raises anything about a model.
    """
    import onnxruntime as ort

    if isinstance(model, str) and not is_utf8(model):  # it would blame the types of arguments
        raise ModelExportError(
            f"ONNX Runtime cannot open {model}, whose path is not UTF-8: rename it"
        )
    if provider.library is not None:
        add_plugin(options, provider)
        return ort.InferenceSession(model, options)
    providers: list[Any] = [(provider.name, dict(provider.options))]
    if provider.name != CPU:
        providers.append(CPU)
    return ort.InferenceSession(model, options, providers=providers)


def assigned_nodes(session: onnxruntime.InferenceSession) -> tuple[AssignedNode, ...]:
    """Return the provider of each node; none if ONNX Runtime is too old to record it."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ()
    return tuple(
        AssignedNode(part.ep_name, node.name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def nodes_that_ran(events: Iterable[Mapping[str, Any]]) -> tuple[AssignedNode, ...]:
    """Return the nodes that ran, by ONNX Runtime's profile. What a provider compiled is one."""
    ran = {}
    for event in events:
        arguments = event.get("args", {})
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith(KERNEL) and arguments.get("provider"):
            node = AssignedNode(
                arguments["provider"], name.removesuffix(KERNEL), arguments["op_name"]
            )
            ran[name, arguments.get("node_index"), node.provider] = node
    return tuple(ran.values())
