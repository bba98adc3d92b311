"""The output of the commands export, tag, strip and verify. It decides nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from modelexport_optimum.cli.provider_tables import print_installs, print_placement
from modelexport_optimum.cli.tables import (
    DIM,
    EVIDENCE_LEGEND,
    Column,
    from_here,
    print_blank,
    print_legend,
    print_line,
    print_table,
    status_cell,
)
from modelexport_optimum.own_code.named_code import find_own_code, in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modelexport_optimum.cli.tables import Row
    from modelexport_optimum.export_run import ExportResult
    from modelexport_optimum.tagging.tag_report import TagReport
    from modelexport_optimum.verifying.verify import VerifyReport

_FILE_COLUMNS = (
    Column("file", shrinks="path"),
    Column("size", right=True, drop=1),
    Column("nodes", right=True),
    Column("modules", right=True, drop=2),
    Column("attribute", right=True, drop=0),
    Column("placed by", shrinks="text"),
)

_LEGEND = {
    "size": "bytes of the file",
    "nodes": "nodes of all graphs of the file, nested ones included",
    "modules": "modules that are in any tag of the file",
    "attribute": "nodes that also carry the tag in the attribute __hierarchy_tag; the others carry "
    "it only in doc_string and metadata_props, because there the attribute would change the graph "
    "that ONNX Runtime builds",
    "placed by": "number of nodes for each kind of evidence:",
    **EVIDENCE_LEGEND,
}

_CHECK_COLUMNS = (
    Column("check"),
    Column("result"),
    Column("", shrinks="text"),
)


def print_export(result: ExportResult, *, legend: bool = False) -> None:
    """Print the summary of a run, and what to do next."""
    print_blank()
    print_line((from_here(result.output), "bold"), f"  {result.task}")
    print_blank()
    print_table(_FILE_COLUMNS, _file_rows(result.tags, result.output, result.files))
    others = [name for name in result.files if not _is_model(name)]
    size = decimal(sum(result.files[name] for name in others))
    print_line(f"and {', '.join(others)} ({size})", style=DIM)
    print_blank()
    rows = result.check_rows
    if (upload := result.upload) is not None and upload.ok:
        rows.append(("Hub", upload.status, upload.message))
    _print_checks(rows)
    print_installs((one.provider, one.install) for one in result.verification.providers)
    if legend:
        print_legend(_LEGEND)
    for warning in result.warnings:
        print_blank()
        print_line(("warning:", "yellow"), f" {warning}")
    print_blank()
    print_line("to see its modules:", style=DIM)
    print_line(f"  modelexport-optimum inspect {shlex.quote(from_here(result.output))}")


def print_tags(report: TagReport, *, trusted: bool, legend: bool = False) -> None:
    """Print the result of the pass for each file, with the evidence of its nodes."""
    print_table(_FILE_COLUMNS, _file_rows(report, Path.cwd(), {}))
    if legend:
        print_legend({name: text for name, text in _LEGEND.items() if name != "size"})
    for directory in [] if trusted else sorted({file.file.parent for file in report.files}):
        own_code = find_own_code(directory)
        if own_code:
            line = f" {from_here(directory)} has {in_words(own_code)}"
            print_line(("warning:", "yellow"), line)
    if not report.classes_known:
        print_line(
            ("warning:", "yellow"),
            " this directory does not say the classes of the modules, so the tags have only paths: "
            "give the source model with tag --model",
        )


def _file_rows(report: TagReport, directory: Path, sizes: Mapping[str, int]) -> Iterator[Row]:
    """Yield a row for each file, with its size if that is known.

    The names in `sizes` are relative to the directory.
    """
    by_name = {from_here(file.file, directory): file for file in report.files}
    for name in sorted({*by_name, *filter(_is_model, sizes)}):
        size = decimal(sizes[name]) if name in sizes else ""
        file = by_name.get(name)
        if file is None:
            yield name, size, "", "", "", ""
            continue
        numbers = [f"{n:,}" for n in (file.node_count, len(file.modules), file.with_attribute)]
        placed_by = ", ".join(f"{kind} {n:,}" for kind, n in file.evidence_counts.items())
        yield name, size, *numbers, placed_by


def print_explanation(paragraphs: Sequence[str]) -> None:
    """Print how the module of a node was found, in each file that has the node."""
    for number, paragraph in enumerate(paragraphs):
        if number:
            print_blank()
        for line in paragraph.splitlines():
            print_line(line)


def print_stripped(changed: Sequence[Path]) -> None:
    """Print the files whose tags were removed."""
    for path in changed:
        print_line(f"stripped {from_here(path)}")
    if not changed:
        print_line("nothing to strip: there are no tags")


def print_verification(report: VerifyReport, *, depth: int | None = None) -> None:
    """Print the result of each check and each provider."""
    _print_checks(report.rows())
    for placement in report.placements:
        print_blank()
        print_placement(placement, depth=depth)
    print_installs((one.provider, one.install) for one in report.providers)


def _print_checks(rows: Sequence[tuple[str, str, str]]) -> None:
    cells = [(name, status_cell(status), message) for name, status, message in rows]
    print_table(_CHECK_COLUMNS, cells)


def _is_model(name: str) -> bool:
    return ".onnx" in name
