"""What the page of `report` shows of one file: facts, measures by module, and the nodes.

Columns of numbers, which are a fifth of the size of rows; the page's script turns them into
charts and tables.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from modelexport_optimum.hierarchy.inspect import amounts
from modelexport_optimum.hierarchy.tagged_model import elements, nbytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from modelexport_optimum.hierarchy.report_figures import Errors, Times
    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.onnx_file.skeleton import Tensor

Measure = dict[str, Any]
"""A measure of modules, as `_measure` makes it."""


def file_data(
    file: TaggedFile, time: Times | None, found: Errors | None, classes: dict[str, int]
) -> dict[str, Any]:
    """Return everything that the page shows of one file of one export.

    Args:
        file: The file.
        time: What `profile` measured of it.
        found: What `compare` found of it.
        classes: Numbers of the class names; a class that is new gets the next one.
    """
    modules = file.modules.values()
    for module in modules:
        classes.setdefault(module.module_class, len(classes))
    return {
        "facts": _facts(file, time),
        "notes": _notes(file, time, found),
        "tolerance": found.tolerance if found is not None else None,
        "modules": {
            "path": [module.path for module in modules],
            "name": [module.name for module in modules],
            "type": [classes[module.module_class] for module in modules],
            "depth": [module.depth for module in modules],
        },
        "measures": [*_counted(file), *_measured(file, time), *_errors(file, found)],
        **_nodes(file),
    }


def _measure(
    key: str,
    label: str,
    unit: str,
    explained: str,
    total: Sequence[float | None],
    *,
    own: Sequence[float] | None = None,
    rest: float = 0,
) -> Measure:
    """Return one measure, by module in the order of the file's modules.

    Args:
        key: Its name for the page's script.
        label: Its name for people.
        unit: How it is written: "count", "bytes", "ms" or "relative".
        explained: What it is, in a sentence.
        total: Of a module with all modules inside it; None where it is not known.
        own: Of the module alone, each thing once, so that these and `rest` add up to the
            whole. None for a measure that does not add up.
        rest: Of no module.
    """
    whole = None if own is None else sum(own) + rest
    return {
        "key": key,
        "label": label,
        "unit": unit,
        "explained": explained,
        "additive": own is not None,
        "total": list(total),
        "own": list(own or ()),
        "rest": rest,
        "whole": whole,
    }


def _counted(file: TaggedFile) -> list[Measure]:
    """Return parameters, their bytes, and operators: what is in the file itself."""
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
        _measure(
            "parameters",
            "Parameters",
            "count",
            f"Elements of the initializers that a module's operators read. {shared}",
            [counted[path][1].parameters for path in file.modules],
            own=parameters,
            rest=without,
        ),
        _measure(
            "bytes",
            "Bytes",
            "bytes",
            f"Size of the initializers that a module's operators read. {shared}",
            [counted[path][1].bytes for path in file.modules],
            own=size,
            rest=size_without,
        ),
        _measure(
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
    """Return the weights of each module that no module before it reads."""
    drawn: set[int] = set()
    first: dict[str, list[Tensor]] = {}
    for module in file.modules.values():
        own = {id(t): t for node in module.nodes for t in node.weights if id(t) not in drawn}
        drawn |= own.keys()
        first[module.path] = list(own.values())
    return first


def _measured(file: TaggedFile, time: Times | None) -> list[Measure]:
    """Return the kernels' time."""
    if time is None:
        return []
    rows: Mapping[str, Any] = {row["module"]: row for row in time["modules"]}
    nothing = {"ms": 0.0, "own_ms": 0.0}
    return [
        _measure(
            "time",
            "Time",
            "ms",
            "Milliseconds of a run in a module's kernels, as ONNX Runtime's profiler saw them.",
            [rows.get(path, nothing)["ms"] for path in file.modules],
            own=[rows.get(path, nothing)["own_ms"] for path in file.modules],
            rest=sum(row["ms"] for row in time["unplaced"]),
        )
    ]


def _errors(file: TaggedFile, found: Errors | None) -> list[Measure]:
    """Return the differences from a reference, which do not add up."""
    if found is None:
        return []
    drawn = "Boxes are as high as operators are many; the stronger the colour, the larger it is."
    return [
        _measure(
            "error",
            "Error",
            "relative",
            f"Relative difference of what leaves a module from the reference. {drawn}",
            [found.error.get(path) for path in file.modules],
        ),
        _measure(
            "own",
            "Own error",
            "relative",
            f"The same when the module is given the reference's tensors. {drawn}",
            [found.own.get(path) for path in file.modules],
        ),
    ]


def _facts(file: TaggedFile, time: Times | None) -> list[tuple[str, str]]:
    facts = [
        ("nodes", f"{len(file.nodes):,}"),
        ("modules", f"{len(file.modules):,}"),
        ("parameters", f"{sum(map(elements, file.initializers)):,}"),
        ("weights", decimal(sum(map(nbytes, file.initializers)))),
        ("opset", str(file.model.opsets.get("", 0))),
    ]
    if time is not None:
        facts.append(("a run", f"{time['run_ms']:.3f} ms"))
    return facts


def _notes(file: TaggedFile, time: Times | None, found: Errors | None) -> list[str]:
    placed = Counter(node.evidence or "not placed" for node in file.nodes)
    notes = ["Nodes placed by " + ", ".join(f"{name} {n:,}" for name, n in placed.most_common())]
    if time is not None:
        inputs = ", ".join(f"{value['name']} {value['type']}" for value in time["inputs"])
        runs = f"{time['iterations']} run{'s' * (time['iterations'] > 1)}"
        notes.append(
            f"{time['kernels_ms']:.3f} ms of a run in kernels on "
            f"{', '.join(row['provider'] for row in time['providers'])}; mean of {runs} of {inputs}"
        )
        added = ", ".join(f"{row['op_type']} {row['ms']:.3f} ms" for row in time["unplaced"])
        if added:
            notes.append(f"Kernels of no module, which ONNX Runtime has added: {added}")
    if found is not None:
        accused = ", ".join(path or "(root)" for path in found.culprits) or "none"
        notes.append(
            f"{found.other} against {found.reference}: differ by themselves, by more than "
            f"{found.tolerance:g}: {accused}"
        )
    return notes


def _nodes(file: TaggedFile) -> dict[str, Any]:
    """Return every node; what many of them share is a number in a list."""
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
