"""Scopes in the names that PyTorch's TorchScript exporter gives to nodes and values.

How PyTorch's TorchScript exporter names things:

- When a module is called, the tracer opens a scope. Its label is the module's first path
  from the traced module, from the last part that is not a number on: `layer.0` for
  `bert.encoder.layer.0` (`_unqualified_variable_name` in torch/onnx's `utils.py`).
- A node is named by the labels of the open scopes, each after a slash, then its operator.
- The second scope with the same labels is named `…_1`, the third `…_2`: at its own end only,
  never further up. Nodes of equal names are numbered likewise
  (torch/csrc/jit/passes/onnx/naming.cpp).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelexport_optimum.onnx_file.skeleton import walk_nodes
from modelexport_optimum.tags.tag_grammar import MAX_MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelexport_optimum.onnx_file.skeleton import Model, Node

_CALL_COUNT = re.compile(r"_\d+$")
"""The number of the call, at the end of a scope: `attention_1`."""

_OUTPUT_NAME = re.compile(r"_output_\d+$")


def node_scope(node: Node) -> str | None:
    """Return the scope in a node's name, "" for the root's, or None if the name has none."""
    head, _, own = node.name.rpartition("/")
    if not is_scoped(node.name):
        return None
    return head if own == node.op_type or _uncounted(own) == node.op_type else None


def name_from_output(node: Node) -> str | None:
    """Return the exporter's name for the node, if an output of the node shows it.

    A fusion or a replacement keeps the names of the outputs that other nodes read.
    """
    for name in node.outputs:
        match = _OUTPUT_NAME.search(name)
        if match and is_scoped(name):
            return name[: match.start()]
    return None


def is_scoped(name: str) -> bool:
    """Return whether a name begins like names with a scope: any text may be a name."""
    return name.startswith("/") and name.count("/") <= MAX_MODULES and "\n" not in name


def _uncounted(scope: str) -> str | None:
    """Return a scope without the count at its end, None if it has none."""
    match = _CALL_COUNT.search(scope)
    return scope[: match.start()] if match else None


def spellings(scope: str) -> list[str]:
    """Return the labels that a scope in a name may stand for: unchanged, and without a count."""
    uncounted = _uncounted(scope)
    return [scope] if uncounted is None else [scope, uncounted]


def paths_of_scope(scope: str) -> Iterator[str]:
    """Yield the module paths that a scope without a count spells label by label, outer first."""
    path = label = ""
    for part in scope.split("/")[1:]:
        # A Sequential's children carry its own label: `layer1/layer1.0`.
        own = part.removeprefix(f"{label}.") if label else part
        path = f"{path}.{own}" if path else own
        label = part
        yield path


def scopes_of(model: Model) -> dict[str, None]:
    """Return all scopes in the names of a file's nodes, in file order."""
    scopes: dict[str, None] = {}
    for node in walk_nodes(model.graph):
        scope = node_scope(node)
        made = name_from_output(node)
        if scope is None and made is not None:
            scope = made.rpartition("/")[0]
        if scope is not None:
            scopes[scope] = None
    return scopes


def called_scopes(model: Model) -> list[str]:
    """Return the scopes without the counts of calls, as far as the names show them."""
    scopes = scopes_of(model)
    return [next(s for s in reversed(spellings(scope)) if s in scopes) for scope in scopes]
