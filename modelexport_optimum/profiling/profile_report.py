"""The profiles of all files of an export, one for each size of the inputs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.profiling.profile_growth import FileGrowth, side_by_side
from modelexport_optimum.system.display import Displayed, several

if TYPE_CHECKING:
    from modelexport_optimum.profiling.profile_result import FileProfile


@dataclass(frozen=True, slots=True, repr=False)
class ProfileReport(Displayed):
    """The times of all files, with every requested size of the inputs."""

    files: tuple[FileProfile, ...]

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        return several(self.files)

    @property
    def growth(self) -> tuple[FileGrowth, ...]:
        """The times of each file for several sizes; empty if only one size was run."""
        groups: dict[str, list[FileProfile]] = defaultdict(list)
        for file in self.files:
            groups[file.name].append(file)
        return tuple(side_by_side(group) for group in groups.values() if len(group) > 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON."""
        return {
            "files": [file.to_dict() for file in self.files],
            "growth": [file.to_dict() for file in self.growth],
        }
