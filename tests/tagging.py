"""Tagged exports of the zoo's models, for the tests of the views: made once a session."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from tempfile import mkdtemp

from modelexport_optimum import tag


@functools.cache
def tagged_copy(export: Path) -> Path:
    """A tagged copy of an export. Not to be written to."""
    directory = Path(mkdtemp(dir=export.parent)) / export.name
    shutil.copytree(export, directory)
    tag(directory)
    return directory
