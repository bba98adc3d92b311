"""The data of one file in the page of `report`: facts, measures by module, and the nodes.

The data are columns of numbers, which are a fifth of the size of rows. The page's script turns them
into charts and tables.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from modelexport_optimum.hierarchy.inspect import amounts
from modelexport_optimum.hierarchy.tagged_model import elements, nbytes, weights_of
from modelexport_optimum.reporting.report_measure import measure
from modelexport_optimum.reporting.report_profile import (
    profile_facts,
    profile_measures,
    profile_notes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.onnx_file.skeleton import Tensor
    from modelexport_optimum.reporting.report_figures import Errors, Times
    from modelexport_optimum.reporting.report_measure import Measure

_DIRECTORIES = re.compile(r"(?<![^\s(])/([^/()]+/)+")
"""Matches the directories of an absolute path, which a shared page must not show."""


def file_data(
    file: TaggedFile, times: Sequence[Times], found: Errors | None, classes: dict[str, int]
) -> dict[str, Any]:
    """Return all data of the page for one file of one export.

    `classes` numbers the class names; a new name gets the next number.
    """
    modules = file.modules.values()
    for module in modules:
        classes.setdefault(module.module_class, len(classes))
    return {
        "facts": [*_facts(file), *profile_facts(times)],
        "notes": [*_placed(file), *profile_notes(times), *_found(found)],
        "tolerance": found.tolerance if found is not None else None,
        "modules": {
            "path": [module.path for module in modules],
            "name": [module.name for module in modules],
            "type": [classes[module.module_class] for module in modules],
            "depth": [module.depth for module in modules],
        },
        "measures": [*_counted(file), *profile_measures(file, times), *_errors(file, found)],
        **_nodes(file),
    }


def _counted(file: TaggedFile) -> list[Measure]:
    """Return the measures of the file itself: parameters, bytes and operators."""
    counted = amounts(file)
    first = _first_reader(file)
    drawn = {id(tensor) for tensors in first.values() for tensor in tensors}
    unread = [tensor for tensor in file.initializers if id(tensor) not in drawn]

    def weights(size: Callable[[Tensor], int]) -> tuple[list[int], int]:
        return [sum(map(size, first[path])) for path in file.modules], sum(map(size, unread))

    parameters, without = weights(elements)
    size, size_without = weights(nbytes)
    shared = "A weight that several modules read counts in each, and is drawn in the first."
    return [
        measure(
            "parameters",
            "Parameters",
            "count",
            f"Elements of the initializers that a module's operators read. {shared}",
            [counted[path][1].parameters for path in file.modules],
            own=parameters,
            rest=without,
        ),
        measure(
            "bytes",
            "Bytes",
            "bytes",
            f"Size of the initializers that a module's operators read. {shared}",
            [counted[path][1].bytes for path in file.modules],
            own=size,
            rest=size_without,
        ),
        measure(
            "operators",
            "Operators",
            "count",
            "Nodes of the graph and of the graphs nested in it.",
            [counted[path][1].node_count for path in file.modules],
            own=[len(module.nodes) for module in file.modules.values()],
            rest=len(file.untagged),
        ),
    ]


def _first_reader(file: TaggedFile) -> dict[str, list[Tensor]]:
    """Return the weights of each module that no earlier module reads."""
    drawn: set[int] = set()
    first: dict[str, list[Tensor]] = {}
    for module in file.modules.values():
        read = weights_of(module.nodes)
        first[module.path] = [tensor for key, tensor in read.items() if key not in drawn]
        drawn |= read.keys()
    return first


def _errors(file: TaggedFile, found: Errors | None) -> list[Measure]:
    """Return the differences from a reference, which do not add up."""
    if found is None:
        return []
    drawn = "The height of a box is its number of operators; a stronger colour is a larger value."
    return [
        measure(
            "error",
            "Error",
            "relative",
            f"Relative difference of a module's outputs from the reference. {drawn}",
            [found.error.get(path) for path in file.modules],
        ),
        measure(
            "own",
            "Own error",
            "relative",
            f"The same if the module gets the reference's input tensors. {drawn}",
            [found.own.get(path) for path in file.modules],
        ),
    ]


def _facts(file: TaggedFile) -> list[tuple[str, str]]:
    return [
        ("nodes", f"{len(file.nodes):,}"),
        ("modules", f"{len(file.modules):,}"),
        ("parameters", f"{sum(map(elements, file.initializers)):,}"),
        ("weights", decimal(sum(map(nbytes, file.initializers)))),
        ("opset", str(file.model.opsets.get("", 0))),
    ]


def _placed(file: TaggedFile) -> list[str]:
    placed = Counter(node.evidence or "not placed" for node in file.nodes)
    return ["Nodes placed by " + ", ".join(f"{name} {n:,}" for name, n in placed.most_common())]


def _found(found: Errors | None) -> list[str]:
    if found is None:
        return []
    accused = ", ".join(path or "(root)" for path in found.culprits) or "none"
    other, reference = (_DIRECTORIES.sub("", side) for side in (found.other, found.reference))
    if other == reference:
        other, reference = found.other, found.reference
    return [
        f"{other} against {reference}: differ by themselves, by more than "
        f"{found.tolerance:g}: {accused}"
    ]


def _nodes(file: TaggedFile) -> dict[str, Any]:
    """Return every node; shared texts are replaced by their number in a list."""
    place = {path: index for index, path in enumerate(file.modules)}
    columns = {
        "op_type": [node.op_type for node in file.nodes],
        "evidence": [node.evidence for node in file.nodes],
        "graph": [node.graph for node in file.nodes],
    }
    lists = {name: list(dict.fromkeys(column)) for name, column in columns.items()}
    numbers = {name: {text: n for n, text in enumerate(texts)} for name, texts in lists.items()}
    return {
        "nodes": {
            "name": [node.name for node in file.nodes],
            "module": [place[n.module.path] if n.module is not None else -1 for n in file.nodes],
            **{name: [numbers[name][text] for text in column] for name, column in columns.items()},
        },
        "lists": lists,
    }
