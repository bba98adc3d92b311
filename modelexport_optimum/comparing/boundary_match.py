"""Pairs of a graph's values and the module outputs that another run recorded.

Values are matched by module path, call and shape; the outputs of the whole graph by name. An
unmatched call has a reason.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelexport_optimum.comparing.comparison import difference
from modelexport_optimum.graph_runs.recorded_run import output_value
from modelexport_optimum.tags.tag_grammar import is_inside, outer_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from modelexport_optimum.comparing.comparison import Difference
    from modelexport_optimum.graph_runs.flat_graph import FlatGraph, ModuleCall
    from modelexport_optimum.graph_runs.recorded_run import RecordedRun, ValueStore
    from modelexport_optimum.tags.recorded_call import RecordedCall


_MOST_DISTANCES = 64
"""Maximum number of distances computed to distinguish values of one shape: eight on each side."""

_ALIKE = 1.0
"""Unrelated tensors differ by more: by the root of 2 if their norms are equal."""


@dataclass(slots=True)
class MatchedCall:
    """One call of the reference, with its counterpart in the graph.

    Attributes:
        recorded: The call in the reference.
        call: The call in the graph whose nodes compute the values; None if there is none.
        pairs: Values of the graph to values of the reference.
        given: Values that it reads and that the call around it computes, to values of the
            reference.
        reason: Why there are no pairs, or what the pairs are; or "".
    """

    recorded: RecordedCall
    call: ModuleCall | None = None
    pairs: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_matched(self) -> bool:
        """Whether there is a value to compare, or no value that could be wrong."""
        return bool(self.pairs) or self.recorded.passes_through


def match(recorded: RecordedRun, graph: FlatGraph, values: ValueStore) -> list[MatchedCall]:
    """Find the values of a graph for the outputs of each call of the reference, in their order."""
    by_path: dict[str, list[MatchedCall]] = defaultdict(list)
    matched = [MatchedCall(call) for call in recorded.calls]
    for entry in matched:
        by_path[entry.recorded.path].append(entry)
    calls: dict[str, list[ModuleCall]] = defaultdict(list)
    for call in graph.calls:
        calls[call.module.path].append(call)
    for path, entries in by_path.items():
        if path == "" and recorded.outputs:
            _match_root(entries, calls[""], recorded, values)
            continue
        _match_module(entries, calls.get(path, []), recorded.values, values)
    _drop_ambiguous(matched)
    _name_fused(matched, graph)
    _match_without_nodes(matched, recorded, graph)
    return matched


def _match_root(
    entries: list[MatchedCall],
    calls: list[ModuleCall],
    recorded: RecordedRun,
    values: ValueStore,
) -> None:
    """Match the outputs of the graph."""
    for entry in entries:
        entry.call = calls[0] if calls else None
        entry.pairs = {
            name: output_value(name)
            for name in recorded.outputs
            if name in values and values.shape(name) == recorded.outputs[name].shape
        }
        if not entry.pairs:
            entry.reason = "the outputs have other names or shapes than those of the reference"


def _match_module(
    entries: list[MatchedCall], calls: list[ModuleCall], reference: ValueStore, values: ValueStore
) -> None:
    """Match the calls of one module."""
    if len(entries) == len(calls):
        for entry, call in zip(entries, calls, strict=True):
            entry.call = call
            entry.given = _given(entry.recorded, call, reference, values)
            entry.pairs = _paired(entry.recorded.outputs, call.outputs, reference, values)
            if not entry.pairs:
                entry.reason = _why_unpaired(entry.recorded.outputs, call.outputs)
        return
    if not calls:
        return
    # A graph that has lost the scopes of its nodes shows all calls as one.
    ours = [name for call in calls for name in call.outputs]
    theirs = [name for entry in entries for name in entry.recorded.outputs]
    pairs = _paired(theirs, ours, reference, values)
    named = {other: name for name, other in pairs.items()}
    for entry in entries:
        entry.call = calls[0] if len(calls) == 1 else None
        entry.pairs = {named[o]: o for o in entry.recorded.outputs if o in named}
        if not entry.pairs:
            entry.reason = f"it runs {len(entries)} times here and {len(calls)} times there"


def _paired(
    theirs: Sequence[str], ours: Sequence[str], reference: ValueStore, values: ValueStore
) -> dict[str, str]:
    """Pair kept values of one shape, each with one of the other side.

    If several values have one shape, their order decides. If it cannot, because one side has more
    of them or another order, the closest two are a pair.
    """
    shapes: dict[tuple[int, ...], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, names, kept in ((0, theirs, reference), (1, ours, values)):
        for name in dict.fromkeys(names):
            if name in kept:
                shapes[kept.shape(name)][side].append(name)
    pairs: dict[str, str] = {}
    for these, those in shapes.values():
        if len(these) == len(those) == 1 or len(these) * len(those) > _MOST_DISTANCES:
            pairs.update(zip(those, these, strict=True) if len(these) == len(those) else ())
        else:
            pairs.update(_closest(these, those, reference, values))
    _pair_transposed(pairs, shapes)
    return pairs


def _pair_transposed(
    pairs: dict[str, str],
    shapes: Mapping[tuple[int, ...], tuple[list[str], list[str]]],
) -> None:
    """Pair the remaining values, if one side has them with the axes in another order.

    An exporter drops a Transpose at the end of a module and the one that follows it outside.
    """
    paired = set(pairs.values())
    theirs = [(o, shape) for shape, (names, _) in shapes.items() for o in names if o not in paired]
    ours = [(n, shape) for shape, (_, names) in shapes.items() for n in names if n not in pairs]
    if len(theirs) == len(ours) == 1 and order_of_axes(theirs[0][1], ours[0][1]):
        pairs[ours[0][0]] = theirs[0][0]


def order_of_axes(theirs: tuple[int, ...], ours: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the order of a tensor's axes that gives another shape; None if it is not certain."""
    if sorted(theirs) != sorted(ours) or len(set(ours)) < len(ours):
        return None
    return tuple(theirs.index(size) for size in ours)


def in_shape(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor with its axes in the order of a shape, if that order is certain."""
    order = None if value.shape == shape else order_of_axes(value.shape, shape)
    return value if order is None else value.transpose(order)


def kept_difference(reference: ValueStore, other: str, values: ValueStore, name: str) -> Difference:
    """Measure how far a kept value is from the reference's, the axes of both in one order."""
    return difference(in_shape(reference.get(other), values.shape(name)), values.get(name))


def _closest(
    theirs: Sequence[str], ours: Sequence[str], reference: ValueStore, values: ValueStore
) -> dict[str, str]:
    distances = sorted(
        (kept_difference(reference, other, values, name).relative, abs(i - j), name, other)
        for i, other in enumerate(theirs)
        for j, name in enumerate(ours)
    )
    pairs: dict[str, str] = {}
    for _, _, name, other in distances:
        if name not in pairs and other not in pairs.values():
            pairs[name] = other
    return pairs


def _given(
    recorded: RecordedCall, call: ModuleCall, reference: ValueStore, values: ValueStore
) -> dict[str, str]:
    """Pair the values that a call reads from the call around it.

    One side may have values that the other does not have, so only similar values are pairs.
    """
    return {
        name: other
        for name, other in _paired(recorded.given, call.inputs, reference, values).items()
        if kept_difference(reference, other, values, name).relative < _ALIKE
    }


def _why_unpaired(theirs: Iterable[str], ours: Sequence[str]) -> str:
    if not tuple(theirs):
        return "it has no output tensor in the reference"
    if not ours:
        return "it has no output tensor in the graph: no node outside reads its results"
    return "its output tensors have other shapes than those of the reference"


def _drop_ambiguous(matched: Sequence[MatchedCall]) -> None:
    """Undo the matches of modules inside which another module calls something.

    By its tag such a call is in the module, so the outputs of the module are not certain.
    """
    called = {entry.recorded.path for entry in matched}
    blurred: dict[str, str] = {}
    for entry in matched:
        for outer in outer_paths(entry.recorded.path):
            if is_inside(entry.recorded.caller, outer):
                break
            if outer in called:
                blurred[outer] = entry.recorded.path
    for entry in matched:
        if inner := blurred.get(entry.recorded.path):
            entry.pairs = {}
            entry.reason = f"its submodule {inner} is also called from outside"


def _name_fused(matched: Iterable[MatchedCall], graph: FlatGraph) -> None:
    """Explain which modules have parameters that only nodes of another module read.

    A part of such a module was fused into the other one. Its outputs in the graph, if any, are then
    only a part of its result in the reference, so the match is undone.
    """
    readers: dict[str, list[ModuleCall]] = defaultdict(list)
    for node in graph.nodes:
        for name in node.reads:
            if name in graph.initializers:
                readers[name].append(node.call)
    fused: dict[str, tuple[str, str]] = {}
    for name, calls in readers.items():
        # The module whose parameter it is, and those around it that have no reader either.
        for outer in outer_paths(name):
            if any(is_inside(call.module.path, outer) for call in calls):
                break
            fused.setdefault(outer, (name[len(outer) + 1 :], calls[0].module.path))
    for entry in matched:
        if entry.recorded.path in fused:
            parameter, place = fused[entry.recorded.path]
            where = place or "the root"
            entry.reason = (
                f"a node of {where} applies its {parameter}: the two modules were fused, or their "
                "tags do not distinguish them"
            )
            entry.pairs = {}


def _match_without_nodes(
    matched: Sequence[MatchedCall], recorded: RecordedRun, graph: FlatGraph
) -> None:
    """Match the calls of the reference without a node in the graph.

    Such a call passes its input on, as a Dropout does. Or it was folded into the module whose
    result only it reads, as a BatchNorm into a Conv; then the value of that module is the result of
    both.
    """
    ours: dict[str, str] = {}
    makers: dict[str, MatchedCall] = {}  # the innermost call that gave a value
    for entry in matched:
        for name, other in entry.pairs.items():
            ours.setdefault(other, name)
        makers.update((other, entry) for other in entry.recorded.outputs)
    readers: dict[str, set[str]] = defaultdict(set)
    for entry in matched:
        for name in entry.recorded.reads:
            readers[name].add(entry.recorded.path)
    present = {call.module.path for call in graph.calls}
    for entry in matched:
        call = entry.recorded
        if entry.pairs or call.path in present:
            continue
        if call.path in graph.nested:
            entry.reason = "its nodes are in a nested graph, which runs as a whole"
        elif not call.outputs:
            entry.reason = "it has no output tensor in the reference"
        elif call.passes_through:
            entry.reason = "it passes its input on"
        elif not call.needed:
            entry.reason = "no output of the model needs its results: the export left it out"
            continue
        elif not call.varies:
            entry.reason = "it depends on no input: the export stores its result as a constant"
            continue
        elif not entry.reason:
            entry.reason = "no node of the graph belongs to it"
        if len(call.reads) != 1 or len(call.outputs) != 1:
            continue
        (source,), (result,) = call.reads, call.outputs
        if source not in ours:
            continue
        if source == result or _same(recorded, source, result):
            entry.pairs, entry.reason = {ours[source]: result}, "it passes its input on"
        elif (
            source in makers
            and ours[source] in makers[source].pairs
            and all(is_inside(call.path, reader) for reader in readers[source])
            and recorded.values.shape(result) == recorded.values.shape(source)
        ):
            _fold(entry, makers[source], matched, ours[source])
        ours.setdefault(result, ours[source])


def _fold(
    entry: MatchedCall, maker: MatchedCall, matched: Iterable[MatchedCall], name: str
) -> None:
    """Use a value of the graph as the result of the module that was folded into its producer."""
    (source,), (result,) = entry.recorded.reads, entry.recorded.outputs
    entry.call, entry.pairs = maker.call, {name: result}
    entry.reason = f"compared together with {maker.recorded.path}, into which it was folded"
    for other in matched:
        if other is not entry and other.pairs.get(name) == source:
            other.pairs[name] = result
            other.reason = f"compared together with {entry.recorded.path}, folded into it"


def _same(recorded: RecordedRun, one: str, other: str) -> bool:
    first, second = recorded.values.get(one), recorded.values.get(other)
    return first.shape == second.shape and bool((first == second).all())
