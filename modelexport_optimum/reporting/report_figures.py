"""Figures of `profile` and `compare` for the files of a report.

They are results of these functions, or files that `--json` wrote. The author of such a file is
unknown.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from modelexport_optimum.comparing.comparison import LARGEST_SHOWN, Comparison
from modelexport_optimum.errors import UsageError
from modelexport_optimum.profiling.profile_report import ProfileReport
from modelexport_optimum.system.files import read_file
from modelexport_optimum.system.json_files import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile

    # What `FileProfile.to_dict` gives.
    Times = Mapping[str, Any]

_TIMES: dict[str, Any] = {
    "file": str,
    "iterations": int,
    "run_ms": float,
    "kernels_ms": float,
    "activation_bytes": (int, None),
    "peak_bytes": (int, None),
    "batch_size": (int, None),
    "sequence_length": (int, None),
    "inputs": [{"name": str, "type": str}],
    "providers": [{"provider": str}],
    "modules": [
        {
            "module": str,
            "ms": float,
            "own_ms": float,
            "activation_bytes": (int, None),
            "own_activation_bytes": (int, None),
            "peak_bytes": (int, None),
        }
    ],
    "unplaced": [{"op_type": str, "ms": float, "kernel_count": int}],
    "branch": {"*": bool},
    "placement": (
        {
            "answer": str,
            "providers": [{"provider": str, "node_count": int}],
            "modules": [{"module": str, "own_node_counts": {"*": int}}],
            "crossing_count": int,
            "crossing_bytes": (int, None),
        },
        None,
    ),
    "isolated": (
        {
            "provider": str,
            "whole_ms": float,
            "sum_ms": float,
            "modules": [{"module": str, "ms": (float, None)}],
        },
        None,
    ),
}
"""What the page shows of what `profile` wrote."""

_COMPARISON = {
    "reference": str,
    "other": str,
    "tolerance": float,
    "culprits": [str],
    "modules": [
        {
            "path": str,
            "class": str,
            "file": str,
            "relative": (float, None),
            "cosine": (float, None),
            "own_relative": (float, None),
            "matched": bool,
            "reason": str,
        }
    ],
}
"""What it shows of what `compare` wrote."""

_BRANCH = re.compile(r"\.onnx \(.*\)$")
"""Matches the name of a branch after the name of a file."""


@dataclass(frozen=True, slots=True)
class Errors:
    """The results of a comparison for one file.

    Attributes:
        reference: The reference, in words.
        other: The other side, in words.
        tolerance: Largest relative difference that does not count.
        culprits: Paths of the modules that differ by themselves, worst first.
        error: The relative difference of a module's outputs, by its path: the worst of its calls,
            at most `LARGEST_SHOWN`. A module that was not compared has no entry.
        own: The same with the reference's tensors as inputs.
    """

    reference: str
    other: str
    tolerance: float
    culprits: tuple[str, ...]
    error: Mapping[str, float]
    own: Mapping[str, float]


def read_times(
    profile: ProfileReport | str | os.PathLike[str], files: Sequence[TaggedFile]
) -> list[list[Times]]:
    """Return the times of each file, once for each way in which it was run.

    Raises:
        UsageError: The profile is not one of these files.
    """
    document = profile.to_dict() if isinstance(profile, ProfileReport) else _read(profile)
    document = _completed(document)
    if not _has_form(document, {"files": [_TIMES]}):
        raise UsageError(f"{profile} is not the output of `profile --json`")
    known: dict[str, list[Times]] = {}
    for times in document["files"]:
        known.setdefault(os.path.realpath(times["file"]), []).append(times)
    found = [known.get(os.path.realpath(file.path), []) for file in files]
    for file, several in zip(files, found, strict=True):
        rows = [row for times in several for row in _all_rows(times)]
        strange = [row["module"] for row in rows if row["module"] not in file.modules]
        if strange:
            raise UsageError(f"{file.path} has no module {strange[0]}: profile it again")
    if not any(found):
        raise UsageError(
            f"{profile} has only the times of {', '.join(map(str, known)) or 'no file'}: profile "
            "the export that is shown"
        )
    return found


def _all_rows(times: Times) -> Iterator[Mapping[str, Any]]:
    yield from times["modules"]
    for part in ("placement", "isolated"):
        yield from times[part]["modules"] if times[part] is not None else ()


def _completed(document: Any) -> Any:  # noqa: ANN401
    """Return a profile with nothing where versions before 0.3 wrote less."""
    try:
        files = [
            {
                **dict.fromkeys(_TIMES),
                "branch": {},
                **file,
                "modules": [{**dict.fromkeys(_TIMES["modules"][0]), **m} for m in file["modules"]],
            }
            for file in document["files"]
        ]
    except (KeyError, TypeError):  # it has another form, which is then said
        return document
    return {"files": files}


def read_errors(
    comparison: Comparison | str | os.PathLike[str], files: Sequence[TaggedFile]
) -> list[Errors | None]:
    """Return the results of a comparison for each file; None for a file without results.

    A comparison names a file by its path in the compared directory. So it fits the same export at
    any place, and both compared exports.

    Raises:
        UsageError: The comparison is not one of these files.
    """
    if isinstance(comparison, Comparison):
        document, source = comparison.to_dict(), "the comparison"
    else:
        document, source = _read(comparison), str(comparison)
    if not _has_form(document, _COMPARISON):
        raise UsageError(f"{source} is not the output of `compare --json`")
    by_file: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["modules"]:
        by_file.setdefault(_BRANCH.sub(".onnx", row["file"]), []).append(row)
    found = [
        next(
            (_errors(file, document, rows) for name, rows in by_file.items() if _is(file, name)),
            None,
        )
        for file in files
    ]
    if not any(found):
        raise UsageError(
            f"{source} has only the figures of {', '.join(by_file) or 'no file'}: compare the "
            "export that is shown"
        )
    return found


def _is(file: TaggedFile, name: str) -> bool:
    return f"/{file.path.absolute().as_posix()}".endswith(f"/{name}")


def _errors(
    file: TaggedFile, document: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> Errors:
    error: dict[str, float] = {}
    own: dict[str, float] = {}
    for row in rows:
        path = row["path"]
        module = file.modules.get(path)
        # What has no node in the graph gets its figures from another module, and a reason.
        if module is None and row["matched"] and not row["reason"]:
            raise UsageError(f"{file.path} has no module {path}: compare it again")
        if module is not None and module.module_class != row["class"]:
            raise UsageError(
                f"{file.path} has {module.module_class} at {path or 'its root'}, and the "
                f"comparison {row['class']}: compare it again"
            )
        if module is None or not row["matched"]:
            continue
        for values, key in ((error, "relative"), (own, "own_relative")):
            value = row[key]
            if value is None and row["cosine"] is not None:
                value = math.inf  # JSON has no other word for it
            if value is not None:
                values[path] = max(min(value, LARGEST_SHOWN), values.get(path, 0.0))
    return Errors(
        document["reference"],
        document["other"],
        document["tolerance"],
        tuple(path for path in document["culprits"] if path in file.modules),
        error,
        own,
    )


def _read(path: str | os.PathLike[str]) -> Any:  # noqa: ANN401
    try:
        return parse_json(read_file(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} as JSON ({error})") from error


def _has_form(value: object, form: object) -> bool:
    """Return whether a JSON value has a form.

    Args:
        value: The value.
        form: A type; a list or an object of forms, where "*" is the form of every key; or a tuple
            of a form and None, for a value that may be null.
    """
    if isinstance(form, tuple):
        return value is None or _has_form(value, form[0])
    if isinstance(form, dict) and "*" in form:
        return isinstance(value, dict) and all(_has_form(one, form["*"]) for one in value.values())
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            key in value and _has_form(value[key], inner) for key, inner in form.items()
        )
    if isinstance(form, list):
        return isinstance(value, list) and all(_has_form(one, form[0]) for one in value)
    if form is str:
        return isinstance(value, str) and "\0" not in value
    if form is bool:
        return isinstance(value, bool)
    numbers = (int, float) if form is float else (int,)
    return type(value) in numbers and -1e15 < cast("float", value) < 1e15
