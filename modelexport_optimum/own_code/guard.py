"""The guard against code that `find_own_code` may have missed.

While it is active, Python executes no file in the model's directory or in the caches that such code
is copied to, and PyTorch unpickles only weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import threading
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, SourceFileLoader, SourcelessFileLoader
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, causes
from modelexport_optimum.own_code.named_code import ADVICE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_WEIGHTS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
"""With this, torch.load unpickles only tensors, whatever its caller requests
(torch/serialization.py, since 2.6); of the two variables one alone may be set."""

_active: list[_Guard] = []
"""The active guarded blocks of all threads."""

_environment: dict[str, str | None] = {}
"""The same variables as they were before the first of these blocks."""

_lock = threading.Lock()
"""Held while these two are changed."""

_installed = False
"""Whether Python's loaders call the guard."""


def pickled_code(error: BaseException) -> str | None:
    """Describe what a checkpoint holds besides weights, if that is why loading failed."""
    for cause in causes(error):
        text = str(cause)
        if "Weights only load failed" in text:
            named = re.search(r"GLOBAL (\S+)", text)
            what = f" ({named[1]})" if named else ""
            return (
                f"a checkpoint that is a pickle with more than weights{what}, which was not run: "
                "save it as safetensors where it is from"
            )
    return None


@dataclass(frozen=True, slots=True)
class _Guard:
    """One guarded block.

    Attributes:
        directories: The directories of the model, which may also contain a project and its
            packages.
        caches: Where libraries copy the code of models to.
    """

    directories: tuple[str, ...]
    caches: tuple[str, ...]

    def covers(self, path: str) -> bool:
        """Return whether a file of code belongs to the model."""
        real = os.path.realpath(path)
        if any(_is_below(real, cache) for cache in self.caches):
            return True
        for directory in self.directories:
            # A virtual environment in the directory is installed, not a part of the model.
            installed = (os.path.realpath(entry) for entry in sys.path if entry)
            inside = (entry for entry in installed if _is_below(entry, directory))
            if _is_below(real, directory) and not any(_is_below(real, entry) for entry in inside):
                return True
        return False


@contextlib.contextmanager
def own_code_refused(*directories: Path | None, trusted: bool) -> Iterator[None]:
    """Keep code of a model from running while the block loads it.

    It applies to all threads: none of them can import a file of the model in the meantime.

    Args:
        directories: The directories of the model; None for a model that its library downloads into
            its cache.
        trusted: Whether the code may run; then this does nothing.

    Raises:
        ModelExportError: Raised inside the code that tried to run a file; a library may catch it.
    """
    if trusted:
        yield
        return
    roots = tuple(os.path.realpath(directory) for directory in directories if directory)
    guard = _Guard(roots, _code_caches())
    with _lock:
        _install()
        if not _active:
            _environment.update({name: os.environ.get(name) for name in _WEIGHTS_ONLY})
            _set_environment(_WEIGHTS_ONLY)
        _active.append(guard)
    try:
        yield
    finally:
        with _lock:
            _active.remove(guard)
            if not _active:
                _set_environment(_environment)


def _code_caches() -> tuple[str, ...]:
    """Return the directories of models' code: the Hub's cache, and the copies for import."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return ()  # nor is any library that keeps a cache
    from huggingface_hub import constants

    modules = os.environ.get("HF_MODULES_CACHE") or os.path.join(constants.HF_HOME, "modules")  # noqa: PTH118
    places = (modules, constants.HF_HUB_CACHE)
    return tuple(os.path.realpath(os.path.expanduser(place)) for place in places)  # noqa: PTH111


def _set_environment(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(os.path.join(directory, ""))  # noqa: PTH118


def _check_file(path: str) -> None:
    if any(guard.covers(path) for guard in list(_active)):
        raise ModelExportError(f"{path} came with a model and was not run: {ADVICE}")


def _install() -> None:
    """Make Python's file loaders, which all imports of files use, call the guard first.

    The change stays, and does nothing when no block is guarded. If it were undone while another
    thread makes its own change, one of the changes could be lost or stay forever.
    """
    global _installed
    if _installed:
        return
    _installed = True
    for loader, method in (
        (SourceFileLoader, "exec_module"),
        (SourcelessFileLoader, "exec_module"),
        (ExtensionFileLoader, "create_module"),
    ):
        _ask_before(loader, method)


def _ask_before(loader: Any, method: str) -> None:  # noqa: ANN401 (one of importlib's classes)
    original = getattr(loader, method)

    def asking(self: Any, argument: Any) -> Any:  # noqa: ANN401 (as importlib has it)
        if _active:
            _check_file(self.path)
        return original(self, argument)

    setattr(loader, method, asking)
