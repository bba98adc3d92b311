"""The limits and resources of one model of a batch: the options that only a line has."""

# Annotations are no strings here: see `exporting.options`.

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

from modelexport_optimum.exporting.options import option

_model_option = functools.partial(option, group="Each model")

_UNITS = {
    **{"": 1, "k": 10**3, "m": 10**6, "g": 10**9},
    **{"kb": 10**3, "mb": 10**6, "gb": 10**9},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
}
"""Bytes of the units that may follow a number, in upper or lower case."""


def read_number(value: Any) -> float:  # noqa: ANN401
    """Read a finite number, or raise a ValueError."""
    try:
        number = float(value)
    except (ValueError, OverflowError):  # the second of an integer that is larger than a float
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a number")
    return number


def read_seconds(value: Any) -> float:  # noqa: ANN401
    """Read a number of seconds above 0, or raise a ValueError."""
    seconds = read_number(value)
    if seconds <= 0:
        raise ValueError(f"{value!r} is not a number of seconds above 0")
    return seconds


def read_amount(value: Any) -> float:  # noqa: ANN401
    """Read a number of cores or GPUs, at least 0; it may be a fraction."""
    amount = read_number(value)
    if amount < 0:
        raise ValueError(f"{value!r} is below 0")
    return amount


def read_bytes(value: Any) -> int:  # noqa: ANN401
    """Read a number of bytes above 0, with a unit or without."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", str(value).strip(), re.ASCII)
    size = _UNITS.get(found[2].lower(), 0) if found else 0
    number = float(found[1]) * size if found else 0
    if not math.isfinite(number) or not (count := int(number)):
        raise ValueError(
            f"{value!r} is not a number of bytes above 0, such as 8000000000, 8GB or 7.5GiB"
        )
    return count


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The limits and the resources of one model.

    Attributes:
        timeout: Seconds from the start of the export; None for no limit.
        num_cpus: Number of processor cores to request from Ray.
        num_gpus: Number of GPUs to request from Ray; may be a fraction.
        memory: Bytes to request from Ray; None requests nothing.
    """

    timeout: float | None = _model_option(
        "--timeout",
        "End the export of a model that takes longer.",
        metavar="SECONDS",
        read=read_seconds,
    )
    num_cpus: float = _model_option(
        "--num-cpus",
        "Number of processor cores to request from Ray.",
        default=1,
        metavar="NUMBER",
        read=read_amount,
    )
    num_gpus: float = _model_option(
        "--num-gpus",
        "Number of GPUs to request from Ray; may be a fraction.",
        default=0,
        metavar="NUMBER",
        read=read_amount,
    )
    memory: int | None = _model_option(
        "--memory",
        "Memory to request from Ray: 8000000000, 8GB, 7.5GiB.",
        metavar="BYTES",
        read=read_bytes,
    )
