"""A model on the Hub: its commit, its files, and the meaning of the Hub's errors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import causes, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubPlace:
    """The place of a model on the Hub, with the names of `main_export`'s arguments.

    `explain_hub_error` explains the errors that its methods raise.

    Attributes:
        subfolder: The folder that the model is in.
        revision: Branch, tag or commit.
        cache_dir: The cache; None for the Hub's own.
        local_files_only: Whether to use only the cache.
        token: The token for the Hub; None for the token of the environment or of the login.
    """

    subfolder: str = ""
    revision: str = "main"
    cache_dir: str | None = None
    local_files_only: bool = False
    token: bool | str | None = None

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> HubPlace:
        """Return the place for the options of an export."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: options[name] for name in names if options.get(name) is not None})

    @property
    def is_default(self) -> bool:
        """Whether it is the default revision in the default cache, in any folder."""
        return self == HubPlace(subfolder=self.subfolder)

    @property
    def is_offline(self) -> bool:
        """Whether only the cache is used."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    def commit(self, name: str) -> str | None:
        """Ask the Hub for the commit of a model."""
        from huggingface_hub import HfApi, constants

        timeout = constants.HF_HUB_ETAG_TIMEOUT
        return HfApi(token=self.token).model_info(name, revision=self.revision, timeout=timeout).sha

    def fetch(self, name: str, patterns: Iterable[str] | None = None) -> Path:
        """Download the files of a model whose names match, and return their directory.

        Raises:
            LocalEntryNotFoundError: The cache does not have it, and the Hub is not asked.
            HFValidationError: This is not the name of a model.
        """
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                name,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
                token=self.token,
                allow_patterns=None if patterns is None else sorted(patterns),
            )
        )

    def cached(self, name: str) -> Path:
        """Return the directory of a model in the cache; raises as `fetch` does."""
        return replace(self, local_files_only=True).fetch(name)


def http_error() -> type[Exception]:
    """Return the class of all errors of the HTTP library that the Hub's client uses.

    That is requests, httpx or another one, by the client's version. The client's own error class is
    derived from the library's.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    own = (huggingface_hub.__name__, Exception.__module__)
    bases = [c for c in HfHubHTTPError.__mro__ if c.__module__.partition(".")[0] not in own]
    found: type[Exception] = bases[-1]
    return found


def explain_hub_error(error: BaseException, name: str, revision: str) -> str | None:
    """Return the Hub's answer in one line, if it caused the error."""
    for cause in causes(error):
        message = _explain_one(cause, name, revision)
        if message is not None:
            return message
    return None


def is_unreachable(error: BaseException) -> bool:
    """Return whether the Hub gave no answer, or answered with a server error."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    return True


def _explain_one(error: BaseException, name: str, revision: str) -> str | None:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"model {name} is gated: ask for access on its page on the Hub, then {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"model {name} has no revision {revision}: check --revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"model {name} is neither a directory here nor a model on the Hub that you may see: "
            f"check the spelling, and if it is private {LOG_IN}"
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
            return f"the Hub refuses access to {name} ({status}): check your token, or {LOG_IN}"
        return f"the Hub ({constants.ENDPOINT}) answered {status} for {name}: try again later"
    if isinstance(error, http_error()):
        return (
            f"the Hub ({constants.ENDPOINT}) cannot be reached to look for {name}: "
            "check the name and the connection"
        )
    return None
