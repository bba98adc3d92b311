"""The result of `profile`: the time and the memory of each module of each file."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelexport_optimum.graph_runs.flat_graph import branch_in_words
from modelexport_optimum.profiling.profile_log import WARM_UP
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.notebook import Part, line, shown, tree, treemap

if TYPE_CHECKING:
    from pathlib import Path

    from modelexport_optimum.example_inputs.declared import Size
    from modelexport_optimum.profiling.isolated import IsolatedRun
    from modelexport_optimum.providers.placement import Placement


@dataclass(frozen=True, slots=True, repr=False)
class ModuleTime(Displayed):
    """The time of one module.

    Attributes:
        module: Module path; "" for the root.
        name: The path from the module around it on, or the root's class.
        module_class: Class name.
        depth: How many modules are around it.
        own: Microseconds of its own kernels, in all measured runs.
        total: The same with those of the modules inside it.
        kernel_count: Number of its own kernels, in one run.
        activations: Bytes of the tensors that its kernels and those of the modules inside it
            give, in one run.
        own_activations: The same of its own kernels.
        parameters: Bytes of the initializers that its operators and those of the modules inside
            it read, each counted once.
        own_parameters: The same of its own operators.
        peak: Most bytes in use while it ran, beyond those that the session holds between runs;
            None where ONNX Runtime does not tell.
    """

    module: str
    name: str
    module_class: str
    depth: int
    own: int
    total: int
    kernel_count: int
    activations: int = 0
    own_activations: int = 0
    parameters: int = 0
    own_parameters: int = 0
    peak: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class FileProfile(Displayed):
    """The time of one file.

    Attributes:
        file: The file.
        iterations: Number of measured runs.
        inputs: Type and shape of each input, by name.
        runs: Microseconds of the measured runs, what is between the kernels included.
        kernels: Microseconds of their kernels.
        providers: The same by the execution provider that ran them.
        modules: The modules in which kernels ran, each after the one around it, the slower
            of two before the other.
        unplaced: Kernels of no module, by operator: microseconds, and their number in one
            run. ONNX Runtime has added them, to change a layout or a type.
        activations: Bytes of the tensors that all kernels give, in one run.
        parameters: Bytes of the file's initializers.
        peak: Most bytes in use in a run, beyond those that the session holds between runs;
            None where ONNX Runtime does not tell.
        placement: Which provider took the nodes of which module; None on the CPU alone.
        branch: What the inputs are that choose a branch, as of a merged decoder.
        sizes: The sizes of the inputs' dimensions, by name, with where each comes from.
        isolated: The modules measured alone, where that was asked for.
        batch_size: The batch size that was asked for; None if none was.
        sequence_length: The number of tokens that was asked for; None if none was.
    """

    file: Path
    iterations: int
    inputs: dict[str, str]
    runs: int
    kernels: int
    providers: dict[str, int]
    modules: tuple[ModuleTime, ...]
    unplaced: dict[str, tuple[int, int]]
    activations: int = 0
    parameters: int = 0
    peak: int | None = None
    placement: Placement | None = None
    branch: dict[str, bool] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    isolated: IsolatedRun | None = None
    batch_size: int | None = None
    sequence_length: int | None = None

    @property
    def name(self) -> str:
        """The file, with the branch that ran if it has several."""
        return f"{self.file} ({self.branch_words})" if self.branch else str(self.file)

    @property
    def branch_words(self) -> str:
        """The branch that ran, as "use_cache_branch=true"; "" if there is one graph."""
        return branch_in_words(self.branch)

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        parts = [
            Part(
                level=module.depth,
                name=module.name,
                path=module.module,
                kind=module.module_class,
                size=module.total,
                own=module.own,
                cells=(
                    f"{self.milliseconds(module.total):.3f}",
                    f"{self.milliseconds(module.own):.3f}",
                    f"{self.share(module.total):.1%}",
                ),
            )
            for module in self.modules
        ]
        inputs = ", ".join(f"{name} {kind}" for name, kind in self.inputs.items())
        return shown(
            self.name,
            line(
                f"{self.milliseconds(self.runs):.3f} ms per run, of which "
                f"{self.milliseconds(self.kernels):.3f} ms in kernels on "
                f"{', '.join(self.providers)}; mean of {self.iterations} runs"
            ),
            line(f"of {inputs}"),
            treemap(parts, lambda size: f"{self.milliseconds(int(size)):.3f} ms"),
            tree(("ms", "own ms", "share"), parts),
        )

    def milliseconds(self, microseconds: int) -> float:
        """Return a time in milliseconds of one run."""
        return microseconds / 1000 / self.iterations

    def share(self, microseconds: int) -> float:
        """Return a time as a fraction of the kernels' time."""
        return microseconds / self.kernels if self.kernels else 0.0

    def repeated(self) -> list[tuple[str, str, int, int]]:
        """Return the modules by their own kernels' time, repeated ones together, slowest first.

        Returns:
            Path with `*` in place of numbers that differ, class, number of modules, microseconds.
        """
        kinds: dict[tuple[str, ...], list[ModuleTime]] = defaultdict(list)
        for module in self.modules:
            parts = ("*" if part.isdecimal() else part for part in module.module.split("."))
            kinds[(module.module_class, *parts)].append(module)
        rows = []
        for kind in kinds.values():
            columns = zip(*(module.module.split(".") for module in kind), strict=True)
            path = ".".join(part if {part} == {*rest} else "*" for part, *rest in columns)
            path = path if len(kind) > 1 else kind[0].module
            rows.append((path, kind[0].module_class, len(kind), sum(m.own for m in kind)))
        return sorted((row for row in rows if row[3]), key=lambda row: -row[3])

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as data for JSON; times in milliseconds of one run."""

        def timed(microseconds: int) -> dict[str, float]:
            return {"ms": self.milliseconds(microseconds), "share": self.share(microseconds)}

        return {
            "file": str(self.file),
            "iterations": self.iterations,
            "warm_up": WARM_UP,
            "inputs": [{"name": name, "type": kind} for name, kind in self.inputs.items()],
            "run_ms": self.milliseconds(self.runs),
            "kernels_ms": self.milliseconds(self.kernels),
            "activation_bytes": self.activations,
            "parameter_bytes": self.parameters,
            "peak_bytes": self.peak,
            "providers": [
                {"provider": name, **timed(time)} for name, time in self.providers.items()
            ],
            "modules": [
                {
                    "module": module.module,
                    "class": module.module_class,
                    "depth": module.depth,
                    "kernel_count": module.kernel_count,
                    "own_ms": self.milliseconds(module.own),
                    **timed(module.total),
                    "activation_bytes": module.activations,
                    "own_activation_bytes": module.own_activations,
                    "parameter_bytes": module.parameters,
                    "own_parameter_bytes": module.own_parameters,
                    "peak_bytes": module.peak,
                }
                for module in self.modules
            ],
            "repeated": [
                {"module": path, "class": name, "module_count": count, **timed(time)}
                for path, name, count, time in self.repeated()
            ],
            "unplaced": [
                {"op_type": op_type, "kernel_count": count, **timed(time)}
                for op_type, (time, count) in self.unplaced.items()
            ],
            "placement": None if self.placement is None else self.placement.to_dict(),
            "branch": self.branch,
            "sizes": [
                {"dimension": name, "size": size.size, "source": size.source}
                for name, size in self.sizes.items()
            ],
            "isolated": None if self.isolated is None else self.isolated.to_dict(),
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
        }
