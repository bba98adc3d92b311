"""How a comparison shows itself in a notebook. It counts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.system.notebook import line, shown, table

if TYPE_CHECKING:
    from modelexport_optimum.comparing.comparison import Comparison, ModuleComparison


def show_comparison(comparison: Comparison) -> str:
    """Show which modules differ, the worst first."""
    if comparison.culprits:
        named = ", ".join(path or "the model itself" for path in comparison.culprits)
        verdict = line(f"differ by themselves: {named}", "bad")
    elif comparison.ok:
        verdict = line("no module differs", "ok")
    else:
        verdict = line("no module differs by itself, but an output does", "bad")
    worst = sorted(
        (module for module in comparison.modules if module.relative is not None),
        key=lambda module: -_order(module),
    )
    outputs = ((row.file, row.name, f"{row.relative:.1e}") for row in comparison.outputs)
    return shown(
        f"{comparison.other} against {comparison.reference}",
        verdict,
        line(f"more than {comparison.tolerance:g} is a difference; the worst are first"),
        table(
            ("module", "class", "error", "own error"),
            (
                (one.path, one.module_class, _figure(one.relative), _figure(one.own_relative))
                for one in worst
            ),
        ),
        table(("file", "output", "error as deployed"), outputs),
    )


def _order(module: ModuleComparison) -> float:
    """Return the difference to sort by; what is not a number is the worst."""
    relative = module.relative
    return float("inf") if relative is None or relative != relative else relative


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
