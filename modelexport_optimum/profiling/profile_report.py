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
    """The time of all files, of each with every size of the inputs that was asked for."""

    files: tuple[FileProfile, ...]

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return several(self.files)

    @property
    def growth(self) -> tuple[FileGrowth, ...]:
        """The times of each file side by side; none if it was run with one size alone."""
        groups: dict[str, list[FileProfile]] = defaultdict(list)
        for file in self.files:
            groups[file.name].append(file)
        return tuple(side_by_side(group) for group in groups.values() if len(group) > 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can carry it."""
        return {
            "files": [file.to_dict() for file in self.files],
            "growth": [file.to_dict() for file in self.growth],
        }
