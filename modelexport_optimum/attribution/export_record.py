"""The record that PyTorch's dynamo exporter writes on its nodes, also after a rewrite of the graph.

torch.export records the calls that are open when an operation runs (`nn_module_stack`, by
`torch/fx/experimental/proxy_tensor.py`). The exporter writes them onto the operation's nodes: the
paths of the modules from the root down, and then the operation's own name, which is also the name
of its output (torch/onnx/_internal/exporter/_core.py).

A later rewrite of the graph, such as the fusions for ONNX Runtime, may replace several nodes by
one. That node gets the record of the first node that the rule matched, and the name of the rule
(onnxscript/rewriter/_rewrite_rule.py, `RULE_NAME_TAG`, and utils/metadata_merger.py). Nodes that
are made by hand have no record.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelexport_optimum.tags.carriers import CLASS_HIERARCHY, NAME_SCOPES, own_metadata
from modelexport_optimum.tags.tag_grammar import parse_scopes, parse_texts

if TYPE_CHECKING:
    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Node

REWRITTEN = "pkg.onnxscript.rewriter.rule_name"

_FORMULA = re.compile(r"Norm|[Gg]elu|RemoveOptionalBias")

_OPERATION = "pkg.torch.onnx.fx_node"
_ARGUMENT = re.compile(r"%(\w+)")
_PLACEHOLDER = ("p_", "b_", "c_")
"""Prefixes of the names of parameters, buffers and constants in the operations
(torch/export/graph_signature.py and torch/_export/utils.py, `placeholder_prefixes`)."""

_CALL_COUNT = re.compile(r"@\d+")
"""torch.export numbers the calls of a module in its path: `attention.query@1`."""

_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_PARAMETER = re.compile(r"^(\w+): PARAMETER target='([^'\n]+)'", re.MULTILINE)

Frames = tuple[str, ...]
"""The open calls, root first: paths of modules, with `@1` for the second call of a module."""


def recorded_modules(node: Node) -> list[tuple[str, str]]:
    """Return the modules that PyTorch recorded on a node.

    Returns:
        (module path, qualified class), root first; empty if there is no record. A record that does
        not begin with the root is not one: torch.export writes a mark of its own instead of modules
        on the nodes that it adds to the graph itself (torch/_export/passes/_node_metadata_hook.py).
    """
    return [(module_path(path), name) for path, name in _record(node)]


def recorded_frames(node: Node) -> Frames:
    """Return the calls that were open when a node's operation ran, () without a record."""
    return tuple(path for path, _ in _record(node))


def recorded_value(node: Node) -> str:
    """Return the name of the recorded operation's output, "" without a record."""
    names = parse_texts(dict(own_metadata(node.metadata)).get(NAME_SCOPES, ""))
    return names[-1] if names else ""


def is_rewritten(node: Node) -> bool:
    """Return whether a node stands for several nodes and has the record of one of them."""
    return any(key == REWRITTEN for key, _ in node.metadata)


def module_path(frame: str) -> str:
    """Return the path of the module that was called."""
    return _CALL_COUNT.sub("", frame) if "@" in frame else frame


def is_one_formula(node: Node) -> bool:
    """Return whether a rewritten node replaces only what its parameters and its record cover.

    Most rules of onnxscript's rewriter also replace operations before the recorded operation, such
    as a Pad or a Transpose in the calling module. The rules that detect the formula of a norm or a
    GELU begin with the formula, and the folding of a BatchNorm names both (rewriter/ort_fusions and
    rewriter/rules).
    """
    rules = next((value for key, value in node.metadata if key == REWRITTEN), "")
    return all(_FORMULA.search(rule) for rule in rules.split(", "))


def is_whole_operation(node: Node) -> bool:
    """Return whether a node reads the same values as the recorded operation."""
    read = {name for name in recorded_arguments(node) if not name.startswith(_PLACEHOLDER)}
    return bool(read) and read.issubset(node.inputs)


def recorded_arguments(node: Node) -> list[str]:
    """Return the names of the recorded operation's inputs, [] without a record."""
    return _ARGUMENT.findall(dict(node.metadata).get(_OPERATION, "").partition("(args = ")[2])


def folded_parameters(graph: Graph) -> dict[str, list[str]]:
    """Return the names, including parameters, that were folded into each initializer."""
    return {name: parse_texts(text) or [] for name, text in graph.folded.items()}


def unread_parameters(model: Model) -> list[str]:
    """Return the parameters of the exported model that are in no initializer."""
    there = {tensor.name for tensor in model.graph.initializers}
    there.update(*folded_parameters(model.graph).values())
    return [name for name in placeholders(model).values() if name not in there]


def placeholders(model: Model) -> dict[str, str]:
    """Return the parameters of the exported model by their names in the recorded operations."""
    signature = dict(model.graph.metadata).get(_SIGNATURE, "")
    return dict(_PARAMETER.findall(signature))


def _record(node: Node) -> list[tuple[str, str]]:
    metadata = dict(own_metadata(node.metadata))
    found = parse_scopes(metadata.get(NAME_SCOPES, ""), metadata.get(CLASS_HIERARCHY, ""))
    return found if found and not found[0][0] else []
