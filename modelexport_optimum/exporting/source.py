"""Where the model comes from: a directory, the Hub, or the Hub's cache.

What can be wrong with a name is said here, before anything heavy is imported and before
Optimum asks the Hub its own questions, some of which have no time-out; and so is code of the
model's that was not trusted. Loading is Optimum's.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from modelexport_optimum.errors import ModelExportError, UsageError, causes, first_line
from modelexport_optimum.own_code import OwnCode, find_own_code, refuse_needed
from modelexport_optimum.system.json_files import parse_json
from modelexport_optimum.system.private_names import CHECK_OF_REPOSITORY_NAME

CONFIGS = ("config.json", "model_index.json", "modules.json")
"""What a model directory has one of: transformers, diffusers, sentence-transformers."""


@dataclass(frozen=True)
class Source:
    """A model that was found.

    Attributes:
        name: as the user gave it.
        directory: where it is on this machine; None when Optimum is to fetch it.
        own_code: what of it would run as code and may not.
    """

    name: str
    directory: Path | None
    own_code: tuple[OwnCode, ...] = ()

    def __str__(self) -> str:
        """What Optimum is given."""
        return self.name if self.directory is None else str(self.directory)


def find_source(
    model: str | os.PathLike[str],
    *,
    subfolder: str = "",
    revision: str = "main",
    cache_dir: str | None = None,
    local_files_only: bool = False,
    token: bool | str | None = None,
    library: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Find the model, or say why it cannot be had.

    A Hub that cannot be reached is no error when the model is in its cache.

    Args:
        model: a name on the Hub, or a directory.
        subfolder: where the model is below that, like all that follow as Optimum has it.
        revision: branch, tag or commit.
        cache_dir: of the Hub.
        local_files_only: whether not to ask the Hub.
        token: for the Hub.
        library: Optimum's name of the library that will load it, if it is known.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ModelExportError: there is no such model, or it needs code that was not trusted.
    """
    place = (subfolder, revision, cache_dir, local_files_only, token)
    source = _find(model, *place)
    if trust_remote_code:
        return source
    directory = source.directory or _described(source.name, *place[1:])
    found = find_own_code(directory / subfolder, library)
    refuse_needed(source.name, found)
    return replace(source, own_code=tuple(found))


def _find(
    model: str | os.PathLike[str],
    subfolder: str,
    revision: str,
    cache_dir: str | None,
    local_files_only: bool,
    token: bool | str | None,
) -> Source:
    name = os.fspath(model)
    path = Path(name).expanduser()
    if path.is_dir():
        _check_directory(path, subfolder)
        return Source(name, path)
    if path.exists():
        raise UsageError(f"model {name} is a file: give the directory that it is in")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise UsageError(f"model {name} does not exist: give a directory or the name on the Hub")
    return _find_on_hub(name, subfolder, revision, cache_dir, local_files_only, token)


def _described(
    name: str,
    revision: str,
    cache_dir: str | None,
    local_files_only: bool,
    token: bool | str | None,
) -> Path:
    """The files of a model on the Hub that name code, and the code, in the Hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=["*config*.json", "modules.json", "model_index.json", "*.py"],
            )
        )
    except Exception as error:
        message = explain_hub_error(error, name, revision)
        if message is None:
            raise
        raise ModelExportError(message) from error


def _check_directory(directory: Path, subfolder: str) -> None:
    place = directory / subfolder
    if not place.is_dir():
        raise UsageError(f"model {directory} has no subfolder {subfolder}")
    if not any((place / name).is_file() for name in CONFIGS):
        raise ModelExportError(
            f"model {place} has no config.json: give the directory that save_pretrained wrote"
        )
    _check_config(place)


def _check_config(place: Path) -> None:
    """Refuse a config.json that does not say which model it is.

    transformers guesses from the directory's name where there is no model_type: `empty` becomes
    an mpt model (`AutoConfig.from_pretrained`).
    """
    path = place / CONFIGS[0]
    if not path.is_file() or any((place / name).is_file() for name in CONFIGS[1:]):
        return
    try:
        config = parse_json(path.read_bytes(), doubles=True)
    except ValueError as error:
        raise ModelExportError(
            f"model {place}: config.json is not JSON ({first_line(error)}): "
            "write it anew with save_pretrained"
        ) from error
    # timm's have an architecture instead.
    if not isinstance(config, dict) or not config.keys() & {"model_type", "architecture"}:
        raise ModelExportError(
            f"model {place}: config.json has no model_type, by which the model would be known: "
            "write it anew with save_pretrained"
        )


def _find_on_hub(
    name: str,
    subfolder: str,
    revision: str,
    cache_dir: str | None,
    local_files_only: bool,
    token: bool | str | None,
) -> Source:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        CHECK_OF_REPOSITORY_NAME.get()(name)
    except HFValidationError as error:
        raise UsageError(
            f"model {name!r} is neither a directory nor a name on the Hub: check the spelling"
        ) from error

    unreachable: Exception | None = None
    if not (local_files_only or constants.HF_HUB_OFFLINE):
        try:
            HfApi(token=token).model_info(
                name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except Exception as error:
            message = explain_hub_error(error, name, revision)
            if message is None:
                raise
            if not _is_unreachable(error):
                raise ModelExportError(message) from error
            unreachable = error
        else:
            return Source(name, None)
    try:
        snapshot = Path(
            snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True)
        )
        _check_directory(snapshot, subfolder)
    except (LocalEntryNotFoundError, ModelExportError) as error:
        if unreachable is not None:
            message = explain_hub_error(unreachable, name, revision)
            raise ModelExportError(f"{message}, or export a directory") from unreachable
        raise ModelExportError(
            f"model {name} is not in the Hub's cache: "
            "export it once without --local-files-only and HF_HUB_OFFLINE, or give a directory"
        ) from error
    return Source(name, snapshot)


def explain_hub_error(error: BaseException, name: str, revision: str) -> str | None:
    """One line for what the Hub answered, if that is what went wrong."""
    for cause in causes(error):
        message = _explain_one(cause, name, revision)
        if message is not None:
            return message
    return None


def _is_unreachable(error: BaseException) -> bool:
    """Whether the Hub gave no answer, or the answer that it is out of order."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    return True


def _explain_one(error: BaseException, name: str, revision: str) -> str | None:
    from huggingface_hub import constants, errors
    from requests.exceptions import RequestException

    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"model {name} is gated: ask for access on its page of the Hub, then {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"model {name} has no revision {revision}: check --revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"model {name} is neither a directory here nor a model on the Hub that you may see: "
            f"check the spelling, and if it is private {log_in}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"model {name} is not complete in the cache and the Hub ({constants.ENDPOINT}) "
            "cannot be reached: check the connection"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"model {name} lacks a file that is needed: {first_line(error)}"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return f"the Hub refuses access to {name} ({status}): check your token, or {log_in}"
        return f"the Hub ({constants.ENDPOINT}) answered {status} for {name}: try again later"
    if isinstance(error, RequestException):
        return (
            f"the Hub ({constants.ENDPOINT}) cannot be reached to look for {name}: "
            "check the name and the connection"
        )
    return None


def state_of(
    model: str,
    *,
    output: Path,
    subfolder: str = "",
    revision: str = "main",
    cache_dir: str | None = None,
    local_files_only: bool = False,
    token: bool | str | None = None,
) -> str | None:
    """What changes whenever the model does.

    Args:
        model: a name on the Hub, or a directory.
        output: where it is exported to, which may be below the model and is no part of it.
        subfolder: as for `find_source`, like all that follow.
        revision: branch, tag or commit.
        cache_dir: of the Hub.
        local_files_only: whether not to ask the Hub.
        token: for the Hub.

    Returns:
        The commit on the Hub, or in its cache where the Hub cannot be asked; for a directory a
        digest as `state_of_directory` makes it; None where neither can be told.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return state_of_directory(path / subfolder, apart_from=output)
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from requests.exceptions import RequestException

    if not (local_files_only or constants.HF_HUB_OFFLINE):
        try:
            return (
                HfApi(token=token)
                .model_info(model, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
                .sha
            )
        except (HfHubHTTPError, RequestException):
            pass  # a model that cannot be had is said by `find_source`
        except HFValidationError:
            return None
    try:
        return Path(
            snapshot_download(model, revision=revision, cache_dir=cache_dir, local_files_only=True)
        ).name
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def state_of_directory(directory: Path, *, apart_from: Path | None = None) -> str:
    """A digest of the names, sizes and times of all files, hidden ones left out."""
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
