"""The result of a comparison: figures by module, and the tolerances.

These are plain data. `compare` computes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.hierarchy.inspect import matching_paths
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.notebook import line, shown, table
from modelexport_optimum.tags.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""The relative difference that rounding explains, by the narrowest type that the two sides compute
in: some hundred times the type's unit roundoff (2^-24, 2^-11, 2^-8), as a module adds up some
thousand products. Measured on the modules of the tests' architectures."""

_WORST: dict[str, Callable[[Iterable[float]], float]]
_WORST = {"max_abs": max, "relative": max, "snr_db": min, "cosine": min}
"""Which of several is the worst, by the figure."""

LARGEST_SHOWN = 1000.0
"""The largest difference for the colour scale, because JSON and the scale have no infinity."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of one or several tensors from the reference's.

    Attributes:
        max_abs: Largest absolute difference.
        relative: Euclidean norm of the difference over that of the reference.
        snr_db: Signal-to-noise ratio in decibels, `-20 log10(relative)`; inf if equal.
        cosine: Cosine of the angle between the two.
    """

    max_abs: float
    relative: float
    snr_db: float
    cosine: float


@dataclass(frozen=True, slots=True, repr=False)
class ModuleComparison(Displayed):
    """One call of one module.

    Attributes:
        path: Module path, as `named_modules()` spells it; "" for the root.
        module_class: Class name.
        call: Index of this call among the calls of the module, from 0.
        file: The file of the other side, relative to its directory; if the file has several
            branches, with the branch that ran.
        max_abs: Largest absolute difference of its outputs, in any sample.
        relative: Relative difference of its outputs: the largest of all samples.
        relative_mean: The mean over the samples.
        snr_db: Signal-to-noise ratio in decibels, the smallest of all samples.
        cosine: Cosine, the smallest of all samples.
        own_relative: Relative difference if it gets the reference's input tensors.
        matched: Whether the call was compared.
        reason: Why it was not compared, or "".
    """

    path: str
    module_class: str
    call: int
    file: str
    max_abs: float | None = None
    relative: float | None = None
    relative_mean: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    own_relative: float | None = None
    matched: bool = False
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as data for JSON: what is infinite or not a number is null."""
        return {
            "path": self.path,
            "class": self.module_class,
            "call": self.call,
            "file": self.file,
            "max_abs": _finite(self.max_abs),
            "relative": _finite(self.relative),
            "relative_mean": _finite(self.relative_mean),
            "snr_db": _finite(self.snr_db),
            "cosine": _finite(self.cosine),
            "own_relative": _finite(self.own_relative),
            "matched": self.matched,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, repr=False)
class OutputComparison(Displayed):
    """One output of a graph, as the file is deployed.

    Attributes:
        file: The file, as in `ModuleComparison`.
        name: The output's name.
        relative: Relative difference with all of ONNX Runtime's optimizations.
        unfused: The same without optimizations, as in the comparison of modules.
        provider_nodes: Number of nodes of the file that the provider took; None if ONNX Runtime is
            too old to report it.
        nodes: Number of all nodes of the file.
    """

    file: str
    name: str
    relative: float
    unfused: float | None
    provider_nodes: int | None = None
    nodes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as data for JSON."""
        return {
            "file": self.file,
            "name": self.name,
            "relative": _finite(self.relative),
            "unfused": _finite(self.unfused),
            "provider_node_count": self.provider_nodes,
            "node_count": self.nodes,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Displayed):
    """The whole comparison.

    Attributes:
        reference: The reference, in words.
        other: The other side, in words.
        tolerance: Largest relative difference that does not count.
        culprits: Paths of the deepest modules whose own difference is larger, worst first.
        modules: The calls of modules, file by file, in the order in which they ran.
        outputs: The outputs of the graphs as deployed.
        skipped: Files of which the other side's provider takes no node. They would run on the CPU,
            so they are not compared.
        unpaired: Paths of the files without a file of the same name on the other side.
    """

    reference: str
    other: str
    tolerance: float
    culprits: tuple[str, ...]
    modules: tuple[ModuleComparison, ...]
    outputs: tuple[OutputComparison, ...]
    skipped: tuple[str, ...] = ()
    unpaired: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no module and no output differs by more than the tolerance."""
        return not self.culprits and all(self._is_within(row.relative) for row in self.outputs)

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        if self.culprits:
            named = ", ".join(path or "the model itself" for path in self.culprits)
            verdict = line(f"differ by themselves: {named}", "bad")
        elif self.ok:
            verdict = line("no module differs", "ok")
        else:
            verdict = line("no module differs by itself, but an output does", "bad")
        worst = sorted(
            (module for module in self.modules if module.relative is not None),
            key=lambda module: -_order(module),
        )
        outputs = ((row.file, row.name, f"{row.relative:.1e}") for row in self.outputs)
        return shown(
            f"{self.other} against {self.reference}",
            verdict,
            line(f"more than {self.tolerance:g} is a difference; the worst are first"),
            table(
                ("module", "class", "error", "own error"),
                (
                    (one.path, one.module_class, _figure(one.relative), _figure(one.own_relative))
                    for one in worst
                ),
            ),
            table(("file", "output", "error as deployed"), outputs),
        )

    @property
    def only_deployed(self) -> tuple[OutputComparison, ...]:
        """Outputs that differ in the deployed file, but not without fusions."""
        return tuple(
            row
            for row in self.outputs
            if not self._is_within(row.relative)
            and row.unfused is not None
            and self._is_within(row.unfused)
        )

    def _is_within(self, relative: float) -> bool:
        return relative <= self.tolerance  # what is not a number is not

    def paths_matching(self, patterns: Iterable[str]) -> set[str]:
        """Return the paths of the modules that match any of the patterns, and of those inside them.

        Raises:
            UsageError: A pattern matches nothing.
        """
        paths = dict.fromkeys(module.path for module in self.modules)
        roots = matching_paths(paths, patterns, self.other)
        return {path for path in paths if any(is_inside(path, root) for root in roots)}

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as data for JSON."""
        return {
            "reference": self.reference,
            "other": self.other,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "culprits": list(self.culprits),
            "modules": [module.to_dict() for module in self.modules],
            "outputs": [output.to_dict() for output in self.outputs],
            "skipped": list(self.skipped),
            "unpaired": list(self.unpaired),
        }


def difference(reference: np.ndarray, other: np.ndarray) -> Difference:
    """Measure the difference between two tensors of the same shape.

    Equal values, including infinities, have no difference. If a value is NaN on one side only, the
    difference is unbounded.
    """
    one = reference.astype(np.float64, copy=False).ravel()
    two = other.astype(np.float64, copy=False).ravel()
    with np.errstate(invalid="ignore", over="ignore"):
        gap = one - two
    if not np.isfinite(gap).all():
        equal = (one == two) | (np.isnan(one) & np.isnan(two))
        gap = np.where(equal, 0.0, gap)
        if not np.isfinite(gap).all():
            return Difference(math.inf, math.inf, -math.inf, 0.0)
        finite = np.isfinite(one) & np.isfinite(two)
        one, two = one[finite], two[finite]
    norm = math.sqrt(_product(one, one))
    distance = math.sqrt(_product(gap, gap))
    relative = distance / norm if norm else (math.inf if distance else 0.0)
    other_norm = math.sqrt(_product(two, two))
    both = norm * other_norm
    cosine = _product(one, two) / both if both else float(norm == other_norm)
    decibels = -20 * math.log10(relative) if relative else math.inf
    return Difference(float(np.abs(gap).max(initial=0.0)), relative, decibels, cosine)


def _product(one: np.ndarray, two: np.ndarray) -> float:
    """Return the scalar product, in one thread: `@` wakes all of them for each tensor."""
    return float(np.einsum("i,i->", one, two))


def worst(found: Sequence[Difference] | Sequence[ModuleComparison]) -> dict[str, Any]:
    """Return the worst of each figure that a `Difference` has, by its name."""
    return {name: pick(getattr(one, name) for one in found) for name, pick in _WORST.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def node_data(found: Comparison, file: TaggedFile) -> dict[str, Any]:
    """Return the own error of each node's module in a file, as Model Explorer reads it.

    Returns:
        `ModelNodeData` of model_explorer/node_data_builder.py, for the graph of the file.
    """
    own: dict[str, float] = {}
    for row in found.modules:
        if row.own_relative is not None:
            own[row.path] = max(row.own_relative, own.get(row.path, 0.0))
    results = {
        node.name: {"value": min(own[node.module.path], LARGEST_SHOWN)}
        for node in file.nodes
        if node.name and node.module is not None and node.module.path in own
    }
    gradient = [{"stop": 0, "bgColor": "white"}, {"stop": 1, "bgColor": "red"}]
    graph = {"name": "own error", "results": results, "gradient": gradient}
    return {file.model.graph.name: graph}


def _order(module: ModuleComparison) -> float:
    """Return the difference to sort by; what is not a number is the worst."""
    relative = module.relative
    return float("inf") if relative is None or relative != relative else relative


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
