"""The files beside a model that hold its weights, which must be in the model's own directory.

A location is text in the model's file, so the author of the file chose it. The same locations are
refused as by onnx itself (onnx/checker.cc, `open_external_data`, since onnx 1.20): a path out of
the directory, a symbolic link on the way, a file with a second hard link, and anything that is not
a regular file. All code that opens such a file opens it here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.errors import InvalidModelError
from modelexport_optimum.onnx_file.skeleton import walk_initializers
from modelexport_optimum.system.files import open_inside

if TYPE_CHECKING:
    from modelexport_optimum.onnx_file.skeleton import Model

_COPY = "copy the model with its weights into one directory (cp -rL) and give that"


class MissingDataError(InvalidModelError):
    """The file is not there."""


def check_external_data(model: Model) -> None:
    """Refuse a model whose weights are outside of its directory; missing weights are allowed.

    Raises:
        InvalidModelError: A file that the model names is not one in its directory.
    """
    locations = {t.location for t in walk_initializers(model.graph) if t.location}
    for location in sorted(locations):
        with contextlib.suppress(MissingDataError):  # reported where it is needed
            os.close(open_external_data(model.path, location))


def open_external_data(model: Path, location: str) -> int:
    """Open a file of a model's weights at its location, and return the descriptor for reading.

    Raises:
        MissingDataError: There is no such file.
        InvalidModelError: It is not a file in the model's directory, or cannot be read.
    """
    place = Path(os.path.normpath(location))
    if place.anchor or ".." in place.parts[:1] or "\0" in location:
        raise InvalidModelError(
            f"{model} keeps weights in {location!r}, outside of its directory: {_COPY}"
        )
    path = model.parent / location
    try:
        descriptor = open_inside(model.parent, place.parts)
    except FileNotFoundError as error:
        raise MissingDataError(f"{path} is missing: copy that file, too") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # what O_NOFOLLOW meets a link with
            raise InvalidModelError(
                f"{path}, where {model.name} keeps weights, is behind a symbolic link: {_COPY}"
            ) from error
        raise InvalidModelError(f"cannot read {path}: {error.strerror}") from error
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise InvalidModelError(
            f"{path}, where {model.name} keeps weights, is not a regular file: {_COPY}"
        )
    raise InvalidModelError(
        f"{path}, where {model.name} keeps weights, has a second hard link and so may be "
        f"any other file: {_COPY}"
    )
