"""One export on one provider: does it verify, what runs there, how long, and does it agree."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnxruntime

from modelexport_optimum import compare, profile, verify
from modelexport_optimum.errors import in_one_line
from modelexport_optimum.example_inputs.generate import generate
from modelexport_optimum.graph_runs.flat_graph import branches
from modelexport_optimum.hierarchy.tagged_model import read_tagged_files
from modelexport_optimum.profiling.chained_files import in_order, keep_outputs
from modelexport_optimum.providers.choice import CPU, choose_provider
from modelexport_optimum.providers.session import open_session, quiet_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

WARM_UP = 3


@dataclass
class Row:
    """A row of the table. What went wrong is a sentence; the rest are figures, or None."""

    model: str
    export: str
    provider: str
    verified: str = ""
    nodes: str = ""
    run_ms: float | None = None
    bound_ms: float | None = None
    difference: float | None = None
    culprits: int | None = None
    wrong: str = ""


def measure(row: Row, directory: Path, iterations: int) -> Row:
    """Fill a row: each figure for itself, so that one that fails leaves the others."""
    steps: list[Callable[[], None]] = [
        lambda: _verify(row, directory),
        lambda: _profile(row, directory, iterations),
        lambda: _bind(row, directory, iterations),
        lambda: _compare(row, directory),
    ]
    for step in steps:
        try:
            step()
        except Exception as error:  # ONNX Runtime raises anything
            row.wrong = row.wrong or in_one_line(error)
    return row


def _verify(row: Row, directory: Path) -> None:
    result = verify(directory, providers=[row.provider]).providers[-1]
    row.verified = result.status
    if result.status != "ok":
        row.wrong = result.message


def _profile(row: Row, directory: Path, iterations: int) -> None:
    """Take the mean times of all files, and the nodes that the provider took."""
    files = profile(directory, provider=row.provider, iterations=iterations).files
    row.run_ms = sum(file.milliseconds(file.runs) for file in files)
    placements = [file.placement for file in files if file.placement is not None]
    taken = sum(one.providers.get(one.provider, 0) for one in placements)
    row.nodes = f"{taken:,} of {sum(one.node_count for one in placements):,}" if placements else ""


def _bind(row: Row, directory: Path, iterations: int) -> None:
    """Take the mean times of all files with inputs and outputs that stay on the device."""
    provider = choose_provider(row.provider)
    device = "cpu" if provider.name == CPU else "cuda"
    given: dict[str, np.ndarray] = {}
    total = 0.0
    for file in in_order(list(read_tagged_files(directory))):
        session = open_session(str(file.path), provider, quiet_options())
        names = [value.name for value in session.get_outputs()]
        for branch in branches(file):
            feeds = generate(
                file.path,
                file.model.graph,
                given=given,
                branch=branch,
                export=directory,
            ).arrays
            binding, outputs = _bound(session, feeds, names, device)
            for _ in range(WARM_UP):
                session.run_with_iobinding(binding)
            started = time.perf_counter()
            for _ in range(iterations):
                session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            total += (time.perf_counter() - started) * 1000 / iterations
            keep_outputs(given, dict(zip(names, outputs(), strict=True)))
    row.bound_ms = total


def _bound(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    names: list[str],
    device: str,
) -> tuple[onnxruntime.IOBinding, Callable[[], list[np.ndarray]]]:
    """Return a binding of arrays on a device, and what gives its outputs as arrays."""
    binding = session.io_binding()
    for name, array in feeds.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        binding.bind_ortvalue_input(name, value)
    for name in names:
        binding.bind_output(name, device)
    return binding, binding.copy_outputs_to_cpu


def _compare(row: Row, directory: Path) -> None:
    """Take the largest difference of an output from the CPU's, and how many modules cause any."""
    if choose_provider(row.provider).name == CPU:
        return
    found = compare(directory, provider=row.provider)
    row.difference = max((output.relative for output in found.outputs), default=None)
    row.culprits = len(found.culprits)
