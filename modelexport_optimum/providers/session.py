"""Sessions of ONNX Runtime on a provider: all of them are made here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.providers.choice import CPU
from modelexport_optimum.providers.plugins import devices_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnxruntime

    from modelexport_optimum.providers.choice import Provider

_RECORD = "session.record_ep_graph_assignment_info"
"""ONNX Runtime 1.24 and newer: it keeps which provider took which nodes (an older one ignores
it)."""

_FATAL = 4
"""ONNX Runtime's log level that says nothing more."""

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
    """Which provider took which nodes of one graph.

    Attributes:
        provider: The provider that was asked for.
        nodes: The nodes.
        recorded: Whether this is ONNX Runtime's own record; else they are the nodes that ran.
        reason: Why the provider took none, if it did and said so.
    """

    provider: str
    nodes: tuple[AssignedNode, ...]
    recorded: bool
    reason: str = ""


def quiet_options(*, recorded: bool = False) -> onnxruntime.SessionOptions:
    """Return options of a session that logs nothing: its errors come as exceptions."""
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
    """Make a session record which provider took which nodes."""
    options.add_session_config_entry(_RECORD, "1")


def add_plugin(options: onnxruntime.SessionOptions, provider: Provider) -> None:
    """Put a provider that is not built in on the options of a session that will be made.

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
    """Make a session on a provider, which leaves to the CPU what it does not take.

    A plugin is added to the options.

    Raises:
        ModelExportError: The provider's library cannot be loaded.
        Exception: ONNX Runtime raises anything about a model.
    """
    import onnxruntime as ort

    if provider.library is not None:
        add_plugin(options, provider)
        return ort.InferenceSession(model, options)
    providers: list[Any] = [(provider.name, dict(provider.options))]
    if provider.name != CPU:
        providers.append(CPU)
    return ort.InferenceSession(model, options, providers=providers)


def assigned_nodes(session: onnxruntime.InferenceSession) -> tuple[AssignedNode, ...]:
    """Return the nodes that each provider took; none if ONNX Runtime is too old to keep them."""
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
