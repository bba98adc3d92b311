"""The record that PyTorch's dynamo exporter writes on its nodes, and what rewriting leaves of it.

torch.export notes the calls that are open when an operation runs (`nn_module_stack`, by
`torch/fx/experimental/proxy_tensor.py`), and the exporter writes them onto the operation's nodes:
the paths of the modules from the root down, and last the operation's own name, which is also the
name of the value that it makes (torch/onnx/_internal/exporter/_core.py).

What rewrites the graph afterwards, as the fusions for ONNX Runtime do, gives a node that stands
for several the record of the first that it matched, and notes that it did so
(onnxscript/rewriter/_rewrite_rule.py, `RULE_NAME_TAG`, and utils/metadata_merger.py); nodes that
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
"""What the names of parameters, buffers and constants begin with in the operations
(torch/export/graph_signature.py and torch/_export/utils.py, `placeholder_prefixes`)."""

_CALL_COUNT = re.compile(r"@\d+")
"""torch.export numbers the calls of a module in its path: `attention.query@1`."""

_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_PARAMETER = re.compile(r"^(\w+): PARAMETER target='([^'\n]+)'", re.MULTILINE)

Frames = tuple[str, ...]
"""The calls that were open, root first: paths of modules, the second call of one with `@1`."""


def recorded_modules(node: Node) -> list[tuple[str, str]]:
    """Return the modules that PyTorch recorded on a node.

    Returns:
        (module path, qualified class), root first; empty if there is no record. One that does not
        begin with the root is none: torch.export puts a mark of its own in the place of the
        modules of what it adds to the graph itself (torch/_export/passes/_node_metadata_hook.py).
    """
    return [(module_path(path), name) for path, name in _record(node)]


def recorded_frames(node: Node) -> Frames:
    """Return the calls that were open when a node's operation ran, () without a record."""
    return tuple(path for path, _ in _record(node))


def recorded_value(node: Node) -> str:
    """Return the name of the value that the recorded operation makes, "" without a record."""
    names = parse_texts(dict(own_metadata(node.metadata)).get(NAME_SCOPES, ""))
    return names[-1] if names else ""


def is_rewritten(node: Node) -> bool:
    """Tell whether a node stands for several, of which its record is that of one."""
    return any(key == REWRITTEN for key, _ in node.metadata)


def module_path(frame: str) -> str:
    """Return the path of the module that was called."""
    return _CALL_COUNT.sub("", frame) if "@" in frame else frame


def is_one_formula(node: Node) -> bool:
    """Tell whether all that a rewritten node replaces is what its parameters and its record say.

    Most rules of onnxscript's rewriter take in what was done to a value before it comes to the
    recorded operation: a Pad or a Transpose, in the module that calls. Those that put a norm or a
    GELU together from its formula begin where the formula does, a BatchNorm's folding names both
    (rewriter/ort_fusions and rewriter/rules).
    """
    rules = next((value for key, value in node.metadata if key == REWRITTEN), "")
    return all(_FORMULA.search(rule) for rule in rules.split(", "))


def is_whole_operation(node: Node) -> bool:
    """Tell whether a node reads the very values that the recorded operation reads."""
    read = {name for name in recorded_arguments(node) if not name.startswith(_PLACEHOLDER)}
    return bool(read) and read.issubset(node.inputs)


def recorded_arguments(node: Node) -> list[str]:
    """Return the names of what the recorded operation reads, [] without a record."""
    return _ARGUMENT.findall(dict(node.metadata).get(_OPERATION, "").partition("(args = ")[2])


def folded_parameters(graph: Graph) -> dict[str, list[str]]:
    """Return the names that were folded into each initializer, parameters among them."""
    found = {name: parse_texts(text) for name, text in graph.folded.items()}
    return {name: names for name, names in found.items() if names}


def unread_parameters(model: Model) -> list[str]:
    """Return the parameters of the exported model that no initializer is, or is made of."""
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
