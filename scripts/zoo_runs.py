"""The exports of the zoo of the tests, for the scripts that go through it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import zoo

from modelexport_optimum import export

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def exported(row: zoo.Architecture, built: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the model and the export of an architecture: those that are there, or new ones."""
    if built is not None:
        yield built / "models" / row.name, built / "exports" / row.name
        return
    with tempfile.TemporaryDirectory() as directory:
        source, output = Path(directory, "model"), Path(directory, "export")
        zoo.build(row, source)
        export(source, output, task=row.task, do_validation=False, **row.arguments(source))
        yield source, output
