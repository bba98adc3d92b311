"""`report()`: one HTML file to share, with the modules of one or two tagged exports.

The numbers come from `inspect` and, if given, from `profile` and `compare`. The page needs no
network and no server, and contains no weights. Its style and its script are in `report_page/`. They
use plain HTML, because no chart library that we know has boxes that work with the keyboard and a
screen reader, and plotly alone makes a page of 4.8 MB.
"""

from __future__ import annotations

import html
import json
import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from modelexport_optimum.hierarchy.tagged_model import read_tagged
from modelexport_optimum.onnx_file.find import onnx_files_by_name
from modelexport_optimum.reporting.report_data import file_data
from modelexport_optimum.reporting.report_figures import read_errors, read_times
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.system.output_files import check_output_file
from modelexport_optimum.system.text import visible
from modelexport_optimum.tags.model_record import RECORDED_PACKAGES, record_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelexport_optimum.comparing.comparison import Comparison
    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.profiling.profile_report import ProfileReport
    from modelexport_optimum.reporting.report_figures import Errors, Times

_Path: TypeAlias = "str | os.PathLike[str]"

_Profiles: TypeAlias = "ProfileReport | _Path | Sequence[ProfileReport | _Path] | None"

_PAGE = Path(__file__).with_name("report_page")
_SCRIPTS = ("chart.js", "page.js", "table.js", "nodes.js")


def report(
    path: _Path,
    output: _Path,
    *,
    against: _Path | None = None,
    profile: ProfileReport | _Path | Sequence[ProfileReport | _Path] | None = None,
    comparison: Comparison | _Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an HTML page about one tagged export, or about two side by side.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them.
        output: The `.html` file to write.
        against: Another export, to show next to the first.
        profile: Times to show: the result of `profile`, or the file that its `--json` wrote; or
            several of these.
        comparison: Errors to show: the result of `compare`, or the file that its `--json` wrote.
        overwrite: Replace an existing file.

    Returns:
        The file that was written.

    Raises:
        UsageError: There is no such file, the output exists, or a profile or the comparison is of
            other files.
        ModelExportError: A file is not tagged, or the page cannot be written.
    """
    target = Path(output)
    check_output_file(target, (".html", ".htm"), overwrite=overwrite)
    exports = [Path(path)] if against is None else [Path(path), Path(against)]
    page = page_of(exports, profile=profile, comparison=comparison)
    with replacing(target) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as page_file:
        page_file.write(page.encode())
    return target


def page_of(
    exports: Sequence[Path], *, profile: _Profiles, comparison: Comparison | _Path | None
) -> str:
    """Return the page about one export, or two.

    Raises:
        UsageError: A profile or the comparison is of none of these files.
        ModelExportError: A file is not tagged.
    """
    files = [
        {name: read_tagged(file, given=export) for name, file in onnx_files_by_name(export).items()}
        for export in exports
    ]
    every = [file for named in files for file in named.values()]
    times = _times(profile, every)
    errors = _errors(comparison, files)
    classes: dict[str, int] = {}
    names = list(dict.fromkeys(name for named in files for name in named))
    if len(exports) > 1 and all(len(named) == 1 for named in files):
        names, files = [names[0]], [{names[0]: next(iter(named.values()))} for named in files]
    parts = [
        _script(
            f"part-{number}-{side}",
            file_data(named[name], times[id(named[name])], errors.get(id(named[name])), classes),
        )
        for number, name in enumerate(names)
        for side, named in enumerate(files)
        if name in named
    ]
    sides = _labels(exports)
    head = {"sides": sides, "classes": list(classes), "files": names}
    heading = " and ".join(sides) if len(sides) > 1 else exports[0].resolve().name
    records = list(dict.fromkeys(_record(next(iter(named.values()))) for named in files))
    return _filled(
        (_PAGE / "page.html").read_text("utf-8"),
        title=html.escape(visible(f"{heading}: {every[0].root.module_class}")),
        heading=html.escape(visible(heading)),
        record=html.escape(visible("; ".join([every[0].root.module_class, *records]))),
        style=(_PAGE / "page.css").read_text("utf-8"),
        data="\n".join([_script("head", head), *parts]),
        script="\n".join((_PAGE / name).read_text("utf-8") for name in _SCRIPTS),
    )


def _labels(exports: Sequence[Path]) -> list[str]:
    """Return labels that distinguish the exports: their names, or their paths."""
    names = [export.resolve().name for export in exports]
    return names if len({*names}) == len(names) else [str(export) for export in exports]


def _times(profile: _Profiles, files: Sequence[TaggedFile]) -> dict[int, list[Times]]:
    """Return the times of each file, in the order of the profiles."""
    found: dict[int, list[Times]] = {id(file): [] for file in files}
    if profile is None:
        return found
    given: Iterable[Any] = profile if isinstance(profile, list | tuple) else [profile]
    for one in given:
        for file, times in zip(files, read_times(one, files), strict=True):
            found[id(file)] += times
    return found


def _errors(
    comparison: Comparison | _Path | None, exports: Sequence[dict[str, TaggedFile]]
) -> dict[int, Errors]:
    """Return the errors of each compared file of the last export, the other side."""
    if comparison is None:
        return {}
    files = list(exports[-1].values())
    found = zip(files, read_errors(comparison, files), strict=True)
    return {id(file): errors for file, errors in found if errors is not None}


def _script(name: str, document: object) -> str:
    """Return data for the page's script; no text in it can end the HTML element."""
    text = json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _filled(page: str, **values: str) -> str:
    """Fill in the placeholders once; text in a value that looks like one stays."""
    first, *parts = page.split("{{")
    filled = [first]
    for part in parts:
        name, _, rest = part.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)


def _record(file: TaggedFile) -> str:
    record = record_of(file.model)
    shown = {name: record.get(name) for name in RECORDED_PACKAGES}
    shown["modelexport-optimum"] = record.get("version")
    versions = ", ".join(f"{name} {value}" for name, value in shown.items() if value)
    # A page is shown to others, whom the directories of this machine do not concern.
    source = record.get("source", "")
    source = PurePath(source).name if PurePath(source).is_absolute() else source
    return f"{source} ({versions})" if source else versions
