"""A measure of modules, in the form that the script of `report`'s page reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Measure = dict[str, Any]
"""A measure of modules, as `measure` makes it."""


def measure(
    key: str,
    label: str,
    unit: str,
    explained: str,
    total: Sequence[float | None],
    *,
    own: Sequence[float] | None = None,
    rest: float = 0,
) -> Measure:
    """Return one measure, by module in the order of the file's modules.

    Args:
        key: Its name for the page's script.
        label: Its name for people.
        unit: How it is written: "count", "bytes", "ms" or "relative".
        explained: What it is, in a sentence.
        total: Of a module with all modules inside it; None where it is not known.
        own: Of the module alone, each thing once, so that these and `rest` add up to the
            whole. None for a measure that does not add up.
        rest: Of no module.
    """
    whole = None if own is None else sum(own) + rest
    return {
        "key": key,
        "label": label,
        "unit": unit,
        "explained": explained,
        "additive": own is not None,
        "total": list(total),
        "own": list(own or ()),
        "rest": rest,
        "whole": whole,
    }
