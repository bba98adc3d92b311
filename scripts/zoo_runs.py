"""What the scripts share that go through the zoo of the tests: its exports, and no noise."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what libraries print, log and warn of in the block."""
    logging.disable(logging.WARNING)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
