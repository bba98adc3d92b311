"""The outputs of each call of each module in one run, on either side of a comparison.

These are plain data of a run in ONNX Runtime (recorded here) or in PyTorch. The values are in a
temporary file and read on demand.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.graph_runs.drawn_values import drawn_values
from modelexport_optimum.tags.recorded_call import RecordedCall

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelexport_optimum.graph_runs.tapped_run import Arrays, TappedRun


class ValueStore:
    """Arrays by name, in one temporary file until the store is closed."""

    def __init__(self) -> None:
        """Make the file."""
        self._file = tempfile.TemporaryFile(prefix="modelexport-optimum-")  # noqa: SIM115 (`close`)
        self._kept: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        """Place in the file, shape and type of each value."""

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a value of that name."""
        return name in self._kept

    def add(self, name: str, value: np.ndarray) -> None:
        """Keep a value, unless there is one of that name."""
        if name not in self._kept:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(_bytes_of(np.ascontiguousarray(value)))
            self._kept[name] = place, value.shape, value.dtype

    def get(self, name: str) -> np.ndarray:
        """Read a value."""
        place, shape, dtype = self._kept[name]
        value: np.ndarray = np.empty(shape, dtype)
        self._file.seek(place)
        self._file.readinto(_bytes_of(value))
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value, without reading it."""
        return self._kept[name][1]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of its elements."""
        return self._kept[name][2]

    def __enter__(self) -> ValueStore:
        """Give the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the values."""
        self.close()

    def close(self) -> None:
        """Remove the values."""
        self._file.close()


def _bytes_of(value: np.ndarray) -> memoryview:
    """Return the memory of a contiguous array."""
    return value.reshape(-1).view(np.uint8).data


def output_value(name: str) -> str:
    """Return the name under which an output of the whole graph is kept among the values."""
    return f"output {name}"


@dataclass(slots=True)
class RecordedRun:
    """One run.

    Attributes:
        calls: The calls, in the order in which they began.
        values: The outputs of the calls.
        outputs: The outputs of the whole graph, by name.
    """

    calls: list[RecordedCall] = field(default_factory=list)
    values: ValueStore = field(default_factory=ValueStore)
    outputs: Arrays = field(default_factory=dict)

    def add_output(self, name: str, value: np.ndarray) -> None:
        """Keep an output of the whole graph."""
        self.outputs[name] = value
        self.values.add(output_value(name), value)


def record_graph(run: TappedRun, feeds: Arrays) -> RecordedRun:
    """Run a graph once, and keep the outputs of its module calls."""
    graph = run.graph
    recorded = RecordedRun()
    left = {name for call in graph.calls for name in call.outputs}
    wanted = left.union(*((*call.inputs, *call.choices, *call.draws) for call in graph.calls))
    given = {name for name in graph.outputs if name in graph.makers}
    for name, value in run.values(wanted | given, feeds):
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            continue  # a sequence or text, which no difference is measured of
        if name in graph.outputs:
            recorded.add_output(name, value)
        if name in wanted:
            recorded.values.add(name, value)
    reads: dict[int, dict[str, None]] = {id(call): {} for call in graph.calls}
    for node in graph.nodes:
        for name in node.reads:
            if name not in left or name not in recorded.values:
                continue
            maker = graph.makers[name].call
            for call in node.call.outwards():
                if maker.around(call.depth) is call:
                    break
                reads[id(call)][name] = None

    def seen(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in dict.fromkeys(names) if name in recorded.values)

    drawn = drawn_values(graph)
    for call in graph.calls:
        recorded.calls.append(
            RecordedCall(
                call.module.path,
                call.module.module_class,
                call.number,
                call.parent.module.path if call.parent is not None else "",
                outputs=seen(call.outputs),
                reads=tuple(reads[id(call)]),
                given=seen(call.inputs),
                choices=seen(call.choices),
                draws=seen(call.draws),
                has_weights=call.has_weights,
                varies=call.varies,
                drawn=not drawn.isdisjoint(call.outputs),
            )
        )
    return recorded
