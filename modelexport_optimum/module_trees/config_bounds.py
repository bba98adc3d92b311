"""Limits on the memory and time that a config.json can cost: its author is unknown.

A configuration class makes one list entry for each layer and label of a number in config.json, and
a model class builds one module for each. Neither can be stopped from outside, so the numbers are
checked before.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.files import read_file
from modelexport_optimum.system.json_files import json_entries, parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_COUNT = 1_000_000
"""Hundreds of times the layers, heads, experts and labels of the largest models."""

MIN_MODULES, MODULES_PER_NODE = 5_000, 100
"""Maximum number of modules built for a graph: a constant, and a number for each node. A called
module leaves a node or contains one that does, except for dropout and similar modules."""


def check_counts(path: Path) -> None:
    """Refuse a config.json with more layers, heads, experts or labels than any model has.

    Counts are named `num_...`, `n_...`, `...layers` and `depth...`, in transformers and diffusers.

    Raises:
        ModelExportError: A number is too large, or the file cannot be read.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelExportError(f"cannot read {path}: {error.strerror}") from error
    for name, value in json_entries(parse_json_object(data, path)):
        if not (name.startswith(("num_", "n_", "depth")) or name.endswith("layers")):
            continue
        for count in value if isinstance(value, list) else [value]:
            if isinstance(count, int | float) and count > MAX_COUNT:
                shown = min(count, sys.float_info.max)  # there are larger whole numbers
                raise ModelExportError(
                    f"{path} has {name} {shown:.3g}, which no model has: repair it or remove it"
                )


@contextlib.contextmanager
def bounded_modules(path: Path, nodes: int) -> Iterator[None]:
    """Stop building a model that has far more modules than a graph has nodes.

    Raises:
        ModelExportError: It has.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    most = max(MIN_MODULES, MODULES_PER_NODE * nodes)
    built = 0

    def count(*_: object) -> None:
        nonlocal built
        built += 1
        if built > most:
            raise ModelExportError(
                f"{path} describes a model of more than {most} modules, and the graphs beside it "
                f"have {nodes} nodes: repair it, or remove it and give the source with --model"
            )

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
