"""The two sides of a comparison: files of an export, each with the other side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from modelexport_optimum.comparing.comparison import TOLERANCES
from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.graph_runs.flat_graph import flatten
from modelexport_optimum.graph_runs.recorded_run import record_graph
from modelexport_optimum.graph_runs.tapped_run import TappedRun
from modelexport_optimum.hierarchy.tagged_model import TaggedFile, read_tagged
from modelexport_optimum.onnx_file.find import onnx_files_by_name
from modelexport_optimum.onnx_file.skeleton import narrowest_float

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from modelexport_optimum.graph_runs.recorded_run import RecordedRun
    from modelexport_optimum.graph_runs.tapped_run import Arrays


class Reference(Protocol):
    """The reference: PyTorch, or an export."""

    def inputs(self, branch: Mapping[str, bool], seed: int) -> Arrays | None:
        """Return inputs that fit a graph, by name; None if the reference has none of its own."""

    def record(self, branch: Mapping[str, bool], feeds: Arrays) -> RecordedRun:
        """Run what the graph computes."""


@dataclass(frozen=True, slots=True)
class ExportReference:
    """A tagged file as the reference, on the CPU."""

    file: TaggedFile

    def inputs(self, branch: Mapping[str, bool], seed: int) -> Arrays | None:
        """Return None: an export has no inputs of its own."""
        return None

    def record(self, branch: Mapping[str, bool], feeds: Arrays) -> RecordedRun:
        """Run the file; the other side must have all its inputs."""
        graph = flatten(self.file, dict(branch))
        read = {name for node in graph.nodes for name in node.reads}
        missing = [v.name for v in graph.inputs if v.name in read and v.name not in feeds]
        if missing:
            raise ModelExportError(
                f"{self.file.path} takes {', '.join(missing)}, but the file on the other side does "
                "not: compare two exports of one model, for one task"
            )
        return record_graph(TappedRun(graph), feeds)


@dataclass(frozen=True, slots=True)
class FilePair:
    """One file of the other side, by its path in its directory, with its reference."""

    name: str
    file: TaggedFile
    reference: Reference

    @property
    def export(self) -> Path:
        """The directory of the export."""
        return self.file.path.parents[self.name.count("/")]


def default_tolerance(pairs: Sequence[FilePair]) -> float:
    """Return the tolerance of the narrowest type of the weights on either side."""
    tensors = (tensor for file in _both_sides(pairs) for tensor in file.initializers)
    return TOLERANCES[narrowest_float(tensors)]


def _both_sides(pairs: Sequence[FilePair]) -> list[TaggedFile]:
    """Return the files of the other side, and those of the reference if it is an export."""
    exports = (p.reference.file for p in pairs if isinstance(p.reference, ExportReference))
    return [*(pair.file for pair in pairs), *exports]


def export_pairs(reference: Path, other: Path) -> list[FilePair]:
    """Pair the files of two exports by their paths in the two directories.

    Raises:
        UsageError: A path does not exist, or the two have no file in common.
        ModelExportError: A file is not tagged.
    """
    theirs = onnx_files_by_name(reference)
    ours = onnx_files_by_name(other)
    if len(theirs) == len(ours) == 1:
        common = [(next(iter(theirs)), next(iter(ours)))]
    else:
        common = [(name, name) for name in ours if name in theirs]
    if not common:
        raise UsageError(
            f"{reference} and {other} have no file of the same name: give one file of each"
        )
    return [
        FilePair(
            ours_name, read_tagged(ours[ours_name]), ExportReference(read_tagged(theirs[name]))
        )
        for name, ours_name in common
    ]


def unpaired(pairs: Sequence[FilePair], *sides: Path) -> tuple[str, ...]:
    """Return the paths of the files of each side that are in no pair."""
    paired = {file.path for file in _both_sides(pairs)}
    files = [file for side in sides for file in onnx_files_by_name(side).values()]
    return tuple(str(file) for file in dict.fromkeys(files) if file not in paired)
