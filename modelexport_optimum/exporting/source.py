"""Where the model comes from: a directory, the Hub, or the Hub's cache.

A wrong name and untrusted code are refused here, before anything heavy is imported and before
Optimum sends requests to the Hub (some of them have no time-out). Optimum loads the model.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelexport_optimum.errors import ModelExportError, UsageError, first_line
from modelexport_optimum.exporting.hub import (
    HubPlace,
    explain_hub_error,
    http_error,
    is_unreachable,
)
from modelexport_optimum.own_code.named_code import OwnCode, find_own_code, refuse_needed
from modelexport_optimum.system.files import expand_user, is_directory, is_utf8
from modelexport_optimum.system.json_files import parse_json
from modelexport_optimum.system.private_names import CHECK_OF_REPOSITORY_NAME

CONFIGS = ("config.json", "model_index.json", "modules.json")
"""Files of which a model directory has one: transformers, diffusers, sentence-transformers."""


@dataclass(frozen=True)
class Source:
    """A model that was found, or is in memory.

    Attributes:
        name: The name from the user, or the class of a model in memory.
        directory: Its directory on this machine; None if Optimum will download it, or in memory.
        place: Its place on the Hub; `subfolder` also applies to a directory.
        own_code: Its code that would run and is not trusted.
        in_memory: Whether it is in memory.
    """

    name: str
    directory: Path | None = None
    place: HubPlace = field(default_factory=HubPlace)
    own_code: tuple[OwnCode, ...] = ()
    in_memory: bool = False

    @property
    def may_be_pipeline(self) -> bool:
        """Whether it is a diffusion pipeline, or is on the Hub and was not read."""
        if self.directory is None:
            return True
        return (self.directory / self.place.subfolder / "model_index.json").is_file()

    @property
    def on_hub(self) -> bool:
        """Whether it was found by a name, on the Hub or in its cache."""
        return not self.in_memory and self.directory != Path(expand_user(self.name))

    def __str__(self) -> str:
        """Return the model argument for Optimum."""
        return self.name if self.directory is None else str(self.directory)


def find_source(
    model: str | os.PathLike[str],
    place: HubPlace | None = None,
    *,
    library: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Find the model, or say why it is not available.

    An unreachable Hub is not an error if the model is in its cache.

    Args:
        model: A name on the Hub, or a directory.
        place: Where on the Hub; its `subfolder` is below a directory, too.
        library: Optimum's name of the library that will load it, if it is known.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelExportError: There is no such model, or it needs code that was not trusted.
    """
    place = place or HubPlace()
    source = _find(os.fspath(model), place)
    if trust_remote_code:
        return source
    directory = source.directory or _described(source.name, place)
    found = find_own_code(directory / place.subfolder, library)
    refuse_needed(source.name, found)
    return replace(source, own_code=tuple(found))


def _find(name: str, place: HubPlace) -> Source:
    if not name:
        raise UsageError("the model's name is empty")
    path = Path(expand_user(name))
    if is_directory(path):
        _check_directory(path, place.subfolder)
        return Source(name, path, place)
    if os.path.exists(path):  # noqa: PTH110 (Path's raises for a name that is too long)
        raise UsageError(f"model {name} is a file: give the directory that it is in")
    is_path = bool(Path(name).drive) or "\\" in name  # of Windows; the Hub has no such names
    if is_path or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise UsageError(f"model {name} does not exist: give a directory or the name on the Hub")
    return _find_on_hub(name, place)


def _described(name: str, place: HubPlace) -> Path:
    """Download the files of a model that may name code, and the code, into the cache."""
    patterns = ["*config*.json", "modules.json", "model_index.json", "*.py"]
    try:
        return place.fetch(name, patterns)
    except Exception as error:
        message = explain_hub_error(error, name, place.revision)
        if message is None:
            raise
        raise ModelExportError(message) from error


def _check_directory(directory: Path, subfolder: str) -> None:
    place = directory / subfolder
    if not place.is_dir():
        raise UsageError(f"model {directory} has no subfolder {subfolder}")
    if not is_utf8(place):
        raise ModelExportError(
            f"model {place} is not UTF-8, and the libraries cannot read it: rename the directory"
        )
    if not os.access(place, os.R_OK | os.X_OK):
        raise ModelExportError(
            f"model {place} cannot be read: give yourself the right to, or a copy"
        )
    if not any((place / name).is_file() for name in CONFIGS):
        raise ModelExportError(
            f"model {place} has no config.json: give the directory that save_pretrained wrote"
        )
    _check_config(place)


def _check_config(place: Path) -> None:
    """Refuse a config.json without a model type.

    Without model_type, transformers guesses from the name of the directory: `empty` becomes an mpt
    model (`AutoConfig.from_pretrained`).
    """
    path = place / CONFIGS[0]
    if not path.is_file() or any((place / name).is_file() for name in CONFIGS[1:]):
        return
    try:
        config = parse_json(path.read_bytes(), doubles=True)
    except ValueError as error:
        raise ModelExportError(
            f"model {place}: config.json is not JSON ({first_line(error)}): write it again with "
            "save_pretrained"
        ) from error
    # timm's have an architecture instead.
    if not isinstance(config, dict) or not config.keys() & {"model_type", "architecture"}:
        raise ModelExportError(
            f"model {place}: config.json has no model_type: write it again with save_pretrained"
        )


def _find_on_hub(name: str, place: HubPlace) -> Source:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        CHECK_OF_REPOSITORY_NAME.get()(name)
    except HFValidationError as error:
        raise UsageError(
            f"model {name!r} is neither a directory nor a name on the Hub: check the spelling"
        ) from error

    unreachable: Exception | None = None
    if not place.is_offline:
        try:
            place.commit(name)
        except Exception as error:
            message = explain_hub_error(error, name, place.revision)
            if message is None:
                raise
            if not is_unreachable(error):
                raise ModelExportError(message) from error
            unreachable = error
        else:
            return Source(name, place=place)
    try:
        snapshot = place.cached(name)
        _check_directory(snapshot, place.subfolder)
    except (LocalEntryNotFoundError, ModelExportError) as error:
        if unreachable is not None:
            message = explain_hub_error(unreachable, name, place.revision)
            raise ModelExportError(f"{message}, or export a directory") from unreachable
        raise ModelExportError(
            f"model {name} is not in the Hub's cache: "
            "export it once without --local-files-only and HF_HUB_OFFLINE, or give a directory"
        ) from error
    return Source(name, snapshot, place)


def state_of(model: str, place: HubPlace, *, output: Path) -> str | None:
    """Return a text that changes whenever the model changes.

    Args:
        model: A name on the Hub, or a directory.
        place: Where on the Hub; its `subfolder` is below a directory, too.
        output: The output of its export; it may be inside the model's directory and does not count.

    Returns:
        The commit on the Hub, or in its cache if the Hub cannot be reached; for a directory the
        digest of `state_of_directory`; None if neither is known.
    """
    path = Path(expand_user(model))
    if is_directory(path):
        return state_of_directory(path / place.subfolder, apart_from=output)
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if not place.is_offline:
        try:
            return place.commit(model)
        except http_error():
            pass  # a model that cannot be had is said by `find_source`
        except HFValidationError:
            return None
    try:
        return place.cached(model).name
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def state_of_directory(directory: Path, *, apart_from: Path | None = None) -> str:
    """Return a digest of the names, sizes and times of all files that are not hidden."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(folder, name) != apart_from
        )
        for name in sorted(files):
            if not name.startswith("."):
                file = Path(folder, name)
                found = file.stat() if file.exists() else file.lstat()  # a link to nothing
                place = file.relative_to(directory)
                digest.update(f"{place}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
