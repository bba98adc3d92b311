"""The upload of a finished export to the Hub. The export stays on the disk, whatever happens.

All files are one commit: if it fails, the repository is unchanged, or new and empty.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, UsageError, causes, first_line, in_one_line
from modelexport_optimum.exporting.hub import LOG_IN, http_error
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.private_names import CHECK_OF_REPOSITORY_NAME
from modelexport_optimum.uploading.model_card import CARD, is_own_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from huggingface_hub import HfApi


@dataclass(frozen=True, repr=False)
class Upload(Displayed):
    """The result of an upload.

    Attributes:
        repository: Its name on the Hub, as given.
        status: "ok", "failed", or "skipped" if a check of the export failed.
        message: One line: the repository, or what went wrong and what to do.
        url: The repository's address; None if nothing was uploaded.
        commit: The commit with the files; None if nothing was uploaded.
        private: Whether the repository is private; None if nothing was uploaded.
    """

    repository: str
    status: str
    message: str
    url: str | None = None
    commit: str | None = None
    private: bool | None = None

    @property
    def ok(self) -> bool:
        """Whether the files are on the Hub."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return the upload as data for JSON."""
        return asdict(self)


def check_repository(repository: str | None, *, private: bool) -> None:
    """Refuse wrong arguments before the export.

    Raises:
        UsageError: This is not a name on the Hub, or there is nothing to make public.
    """
    if repository is None:
        if not private:
            raise UsageError("--public is for --push-to-hub: add it, or leave out --public")
        return
    from huggingface_hub.errors import HFValidationError

    try:
        CHECK_OF_REPOSITORY_NAME.get()(repository)
    except HFValidationError as error:
        raise UsageError(
            f"--push-to-hub {repository!r} is not a name on the Hub: give USER/NAME"
        ) from error


def push(
    directory: Path,
    files: Iterable[str],
    card: str,
    repository: str,
    *,
    private: bool,
    token: bool | str | None = None,
) -> Upload:
    """Upload an export. It raises nothing: a failure is in the result.

    Args:
        directory: The export.
        files: The files to upload, by their paths below the directory.
        card: The card of the repository, unless the directory has one.
        repository: Its name on the Hub; it is created if it does not exist.
        private: Whether a new repository is private. If True, an existing public repository is
            refused.
        token: The token for the Hub; None for the token of the environment or of the login.
    """
    try:
        return _push(directory, files, card, repository, private=private, token=token)
    except _PublicRepositoryError as error:
        return Upload(repository, "failed", f"{error}; the export is in {directory}")
    except Exception as error:
        flag = " --private" if private else ""
        by_hand = f"`hf upload{flag} {shlex.quote(repository)} {shlex.quote(str(directory))}`"
        explanations = (_explained(cause, repository) for cause in causes(error))
        message = next(filter(None, explanations), in_one_line(error))
        return Upload(
            repository,
            "failed",
            f"{message}; the export is in {directory}, and {by_hand} uploads it",
        )


def skipped(repository: str) -> Upload:
    """Return the result for an export that was not uploaded because a check failed."""
    return Upload(repository, "skipped", f"not uploaded to {repository}, because a check failed")


class _PublicRepositoryError(ModelExportError):
    """The repository is public, which `hf upload --private` would not refuse."""


def _push(
    directory: Path,
    files: Iterable[str],
    card: str,
    repository: str,
    *,
    private: bool,
    token: bool | str | None,
) -> Upload:
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not isinstance(token, str) and get_token() is None:
        raise ModelExportError(f"there is no token for the Hub: {LOG_IN}")
    api = HfApi(token=token)
    place = api.create_repo(repository, private=private, exist_ok=True)
    found = api.model_info(place.repo_id)
    if private and not found.private:
        raise _PublicRepositoryError(
            f"{place.repo_id} exists and is public: add --public to upload to it, or give another "
            "name with --push-to-hub"
        )
    contents: dict[str, Path | bytes] = {CARD: card.encode()}
    contents |= {name: directory / name for name in files}
    kept = ""
    if _has_card_of_others(api, place.repo_id):
        del contents[CARD]
        kept = f"; its {CARD} was not written by this program, and was not changed"
    done = api.create_commit(
        place.repo_id,
        [CommitOperationAdd(name, content) for name, content in sorted(contents.items())],
        commit_message="Upload an ONNX export with modelexport-optimum",
    )
    seen_by = "private" if found.private else "public"
    return Upload(
        repository=repository,
        status="ok",
        message=f"{place} ({seen_by}){kept}",
        url=str(place),
        commit=done.oid,
        private=bool(found.private),
    )


def _has_card_of_others(api: HfApi, repository: str) -> bool:
    """Return whether the repository has a card that this program did not write."""
    if not api.file_exists(repository, CARD):
        return False
    return not is_own_file(Path(api.hf_hub_download(repository, CARD)))


def _explained(error: BaseException, repository: str) -> str | None:
    """Return the Hub's answer in one line, if it caused the error."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to upload"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status == 401:
            return f"the Hub does not take the token (401): {LOG_IN}"
        if status == 403:
            return (
                f"the token may not write to {repository} (403): give a name in your own namespace "
                "or your organization's, or use a token with write access"
            )
        if status >= 500:
            return f"the Hub ({constants.ENDPOINT}) answered {status}: try again later"
        return f"the Hub refuses {repository} ({status}): {first_line(error)}"
    if isinstance(error, http_error()):
        return f"the connection to the Hub ({constants.ENDPOINT}) failed: check it and try again"
    return None
