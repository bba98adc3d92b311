"""ONNX Runtime's profile of a session: each kernel with its time and its memory.

The events come from `onnxruntime/core/framework/sequential_executor.cc`. A kernel's event has the
bytes of its outputs. From 1.30 on it also has the bytes in the provider's memory at the end of the
kernel, and the largest number so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.providers.session import KERNEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    _Event = dict[str, Any]


WARM_UP = 3
"""Runs before the measured ones: the first allocates memory, and some providers choose their
kernels in it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel in one run.

    Attributes:
        name: The node's name, "" if it has none.
        op_type: Its operator.
        provider: The provider that ran it.
        time: Microseconds, without the kernels in its nested graphs.
        given: Bytes of its output tensors; 0 for a node with nested graphs, whose kernels wrote
            them.
        in_use: Bytes in use while it ran, beyond those before the run; None if ONNX Runtime does
            not report it.
    """

    name: str
    op_type: str
    provider: str
    time: int
    given: int
    in_use: int | None


def runs_of(log: Sequence[_Event]) -> list[_Event]:
    """Return the events of the runs, in their order."""
    return [event for event in log if event["name"] == "model_run"]


def kernels_of(log: Sequence[_Event], runs: Sequence[_Event]) -> Iterator[Kernel]:
    """Yield each kernel of the given runs.

    A node that runs nested graphs (If, Loop, Scan) is timed together with their nodes. The times of
    these are subtracted, so that the times of all kernels add up to the time of the outermost ones.

    The memory in use is measured for each kernel only in a session's first run: in later runs ONNX
    Runtime allocates the memory of the whole run at the beginning.
    """
    spans = [(run["ts"], run["ts"] + run["dur"]) for run in runs]
    events = [
        event
        for event in log
        if event["cat"] == "Node" and event["name"].endswith(KERNEL)
        if any(start <= event["ts"] <= end for start, end in spans)
    ]
    events.sort(key=lambda event: (event["tid"], event["ts"], -event["dur"]))
    own = [event["dur"] for event in events]
    holds_graphs = [False] * len(events)
    around: list[int] = []
    for index, event in enumerate(events):
        while around and not _inside(event, events[around[-1]]):
            around.pop()
        if around:
            own[around[-1]] -= event["dur"]
            holds_graphs[around[-1]] = True
        around.append(index)
    in_use = _in_use(events)
    for index, event in enumerate(events):
        arguments = event["args"]
        name = event["name"].removesuffix(KERNEL)
        if name == f"{arguments['op_name']}_{arguments['node_index']}":
            name = ""  # so ONNX Runtime's log calls a node that has no name
        yield Kernel(
            name,
            arguments["op_name"],
            arguments["provider"],
            own[index],
            0 if holds_graphs[index] else int(arguments.get("output_size", 0)),
            in_use[index],
        )


def _inside(event: _Event, outer: _Event) -> bool:
    return bool(event["tid"] == outer["tid"] and event["ts"] < outer["ts"] + outer["dur"])


def _in_use(events: Sequence[_Event]) -> list[int | None]:
    """Return the bytes in use while each kernel ran, beyond those before the provider's first.

    The event has the bytes in use at the kernel's end. If the maximum so far has risen, the kernel
    used that maximum.
    """
    before: dict[str, int] = {}
    highest: dict[str, int] = {}
    found: list[int | None] = []
    for event in events:
        arguments = event["args"]
        provider = arguments["provider"]
        if not {"mem_bytes_in_use", "mem_in_use_delta", "mem_in_use_peak"} <= arguments.keys():
            found.append(None)
            continue
        now, peak = int(arguments["mem_bytes_in_use"]), int(arguments["mem_in_use_peak"])
        base = before.setdefault(provider, now - int(arguments["mem_in_use_delta"]))
        most = peak if peak > highest.get(provider, peak) else now
        highest[provider] = peak
        found.append(max(0, most - base))
    return found
