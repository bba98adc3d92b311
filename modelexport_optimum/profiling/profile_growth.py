"""How the times of one file grow with the sizes of its inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.system.display import Displayed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from modelexport_optimum.profiling.profile_result import FileProfile, ModuleTime

_SIZES = ("batch_size", "sequence_length")
"""The sizes that may have several values, as `FileProfile` names them."""


@dataclass(frozen=True, slots=True, repr=False)
class ModuleGrowth(Displayed):
    """The times of one module with each size.

    Attributes:
        module: Module path; "" for the root.
        name: The path relative to its parent, or the root's class.
        module_class: Class name.
        depth: Number of modules that contain it.
        ms: Milliseconds of one run, including its submodules; 0 if no kernel of it ran.
        powers: The power of each size by which the time grows, by the size's name: 1 if twice the
            size takes twice the time, 2 if it takes four times as long. Only sizes with several
            requested values.
    """

    module: str
    name: str
    module_class: str
    depth: int
    ms: tuple[float, ...]
    powers: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as data for JSON."""
        return {
            "module": self.module,
            "class": self.module_class,
            "depth": self.depth,
            "ms": list(self.ms),
            "powers": dict(self.powers),
        }


@dataclass(frozen=True, slots=True, repr=False)
class FileGrowth(Displayed):
    """The times of one file with each size.

    Attributes:
        file: The file.
        name: The file, with the branch that ran if it has several.
        branch: Values of the inputs that choose a branch.
        sizes: Batch size and number of tokens of each run, None if not requested.
        run_ms: Milliseconds of one run, including the time between the kernels.
        powers: The power of each size by which that time grows.
        modules: The modules in which kernels ran, in the order of the first run.
    """

    file: Path
    name: str
    branch: Mapping[str, bool]
    sizes: tuple[Mapping[str, int | None], ...]
    run_ms: tuple[float, ...]
    powers: Mapping[str, float]
    modules: tuple[ModuleGrowth, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the times as data for JSON."""
        return {
            "file": str(self.file),
            "branch": dict(self.branch),
            "sizes": [dict(one) for one in self.sizes],
            "run_ms": list(self.run_ms),
            "powers": dict(self.powers),
            "modules": [module.to_dict() for module in self.modules],
        }


def side_by_side(profiles: Sequence[FileProfile]) -> FileGrowth:
    """Combine the profiles of one file with several sizes."""
    first = profiles[0]
    sizes = [{name: getattr(profile, name) for name in _SIZES} for profile in profiles]
    found: dict[str, ModuleTime] = {}
    for profile in profiles:
        for module in profile.modules:
            found.setdefault(module.module, module)
    times = [{m.module: p.milliseconds(m.total) for m in p.modules} for p in profiles]
    runs = tuple(profile.milliseconds(profile.runs) for profile in profiles)
    rows = []
    for path, module in found.items():
        ms = tuple(time.get(path, 0.0) for time in times)
        rows.append(
            ModuleGrowth(
                path, module.name, module.module_class, module.depth, ms, _powers(sizes, ms)
            )
        )
    return FileGrowth(
        first.file, first.name, first.branch, tuple(sizes), runs, _powers(sizes, runs), tuple(rows)
    )


def _powers(sizes: Sequence[Mapping[str, int | None]], ms: Sequence[float]) -> dict[str, float]:
    """Return the powers of the sizes whose product fits the times best.

    By least squares of the logarithms.
    """
    names = [name for name in _SIZES if len({size[name] for size in sizes}) > 1]
    if min(ms) <= 0:
        return {}
    rows = [[1.0, *(math.log(size[name] or 1) for name in names)] for size in sizes]
    fitted = np.linalg.lstsq(np.array(rows), np.log(ms), rcond=None)[0]
    return {name: float(power) for name, power in zip(names, fitted[1:], strict=True)}
