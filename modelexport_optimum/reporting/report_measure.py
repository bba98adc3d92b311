"""A measure of modules, in the form that the script of `report`'s page reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Measure = dict[str, Any]
"""A measure of modules, made by `measure`."""


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
        unit: Its unit: "count", "bytes", "ms" or "relative".
        explained: Its explanation, one sentence.
        total: The values of modules with their submodules; None if not known.
        own: The values of modules alone, so that these and `rest` add up to the whole. None for a
            measure that does not add up.
        rest: The value that belongs to no module.
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
