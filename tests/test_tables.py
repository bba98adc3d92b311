"""Every table at every width: what decides stays, what is left out is said, no line is broken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from terminals import WIDTHS, printed

from modelexport_optimum import diff, extract, inspect, profile
from modelexport_optimum.cli import batch_progress, profile_tables, run_tables, tables, view_tables
from modelexport_optimum.cli.tables import Cell, Column

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=[False, True], ids=["plain", "colour"])
def colour(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, width: int, colour: bool) -> Callable[..., list[str]]:
    """The lines of a table at that width, with and without colours."""

    def shown(print_it: Callable[..., None], *arguments: Any, **named: Any) -> list[str]:
        text = printed(monkeypatch, width, lambda: print_it(*arguments, **named), colour=colour)
        return text.splitlines()

    return shown


def rows_below(lines: list[str], head: str, width: int) -> list[str]:
    """The lines of the table whose first line begins so, every one within the width."""
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    end = next((n for n, line in enumerate(lines[start:], start) if not line), len(lines))
    for line in lines[start:end]:
        assert len(line) <= width, line
    return lines[start:end]


def assert_left_out_are_said(rows: list[str], columns: tuple[Column, ...], width: int) -> None:
    head = rows[0]
    missing = [column.name for column in columns if column.name and column.name not in head]
    assert all(column.drop is not None for column in columns if column.name in missing)
    note = [number for number, row in enumerate(rows) if row.startswith("no room")]
    assert bool(note) == bool(missing)
    if missing:
        said = " ".join(rows[note[0] :])
        assert said.startswith(f"no room for {', '.join(missing)} in {width} columns; ")
        del rows[note[0] :]


@pytest.fixture(scope="module")
def bert(tagged: Callable[[str], Path]) -> Path:
    return tagged("bert")


@pytest.fixture(scope="module")
def electra(tagged: Callable[[str], Path]) -> Path:
    return tagged("electra")


def test_inspect(bert: Path, show: Callable[..., list[str]], width: int) -> None:
    (view,) = inspect(bert)
    lines = show(view_tables.print_modules, [view], narrowed=False)
    rows = rows_below(lines, "module ", width)
    assert_left_out_are_said(rows, view_tables._MODULES, width)
    for row, module in zip(rows[1:], view.modules, strict=True):
        cells = row.split()
        assert f"{module.total.node_count:,}" in cells
        assert cells[-1] == f"{module.share:.1%}"


def test_nodes(bert: Path, show: Callable[..., list[str]], width: int) -> None:
    (view,) = inspect(bert)
    rows = rows_below(show(view_tables.print_nodes, [view]), "node ", width)
    assert_left_out_are_said(rows, view_tables._NODES, width)
    for row, node in zip(rows[1:], view.nodes, strict=True):
        assert node.op_type in row


def test_diff(bert: Path, electra: Path, show: Callable[..., list[str]], width: int) -> None:
    found = diff(bert / "model.onnx", electra / "model.onnx")
    lines = show(view_tables.print_diff, found)
    text = " ".join(" ".join(lines).split())
    (file,) = found.files
    assert "only in a" in text
    for change in file.interface:
        assert change.name in text
    for line in lines:
        assert len(line) <= width or line.startswith("model.onnx: ") or line[0] in "ab"


def test_extract(bert: Path, tmp_path: Path, show: Callable[..., list[str]], width: int) -> None:
    found = extract(bert, "bert.encoder.layer.0", tmp_path / "layer.onnx")
    lines = show(view_tables.print_extracted, found)
    rows = rows_below(lines, "        tensor", width)
    text = "".join(rows).replace(" ", "")
    for tensor in (*found.inputs, *found.outputs):
        assert tensor.type.partition("[")[0] in text
    assert sum(row.startswith("input") for row in rows) == len(found.inputs)
    assert sum(row.startswith("output") for row in rows) == len(found.outputs)


@pytest.fixture(scope="module")
def profiled(bert: Path) -> Any:
    return profile(bert, iterations=1, sequence_length=8)


def test_profile(profiled: Any, show: Callable[..., list[str]], width: int) -> None:
    lines = show(profile_tables.print_profiles, profiled, depth=None)
    rows = rows_below(lines, "module ", width)
    assert_left_out_are_said(rows, profile_tables._TIMES, width)
    (file,) = profiled.files
    for row, module in zip(rows[1:], file.modules, strict=False):
        assert f"{file.milliseconds(module.total):,.3f}" in row.split()
        assert f"{file.share(module.total):.1%}" in row.split()
    assert_left_out_are_said(
        rows_below(lines, "modules ", width), profile_tables._SLOWEST_MODULES, width
    )


ERROR = "CPUExecutionProvider: the outputs differ from PyTorch's by 0.25, and 0.00001 is allowed"


def record(status: str, **more: Any) -> dict[str, Any]:
    blank = {"task": "text-classification", "node_count": 1081, "bytes": 438_000_000}
    rest = {"seconds": 12.3, "providers": [{"provider": "CPUExecutionProvider", "status": "ok"}]}
    return {
        "model": f"an-organization/a-model-with-a-long-name-{status}",
        "output": f"/exports/{status}-onnx",
        "status": status,
        "error": None,
        **blank,
        **rest,
        **more,
    }


def test_batch(show: Callable[..., list[str]], width: int) -> None:
    from modelexport_optimum.batches.run import BatchResult

    records = [record("ok"), record("check-failed", error=ERROR)]
    result = BatchResult(Path("exports"), records, 0, 12.3)
    rows = rows_below(show(batch_progress.print_batch, result), "status", width)
    assert_left_out_are_said(rows, batch_progress._COLUMNS, width)
    assert rows[1].startswith("ok ")
    failed = next(row for row in rows if row.startswith("check-failed"))
    assert "CPUExecutionProv" in failed
    start = failed.index("CPUExecutionProv")
    words = [row[start:] for row in rows[rows.index(failed) :]]
    assert "".join("".join(words).split()) == "".join(ERROR.split())


def verification() -> Any:
    from modelexport_optimum.providers.needs import INSTALL
    from modelexport_optimum.verifying.providers import ProviderResult
    from modelexport_optimum.verifying.verify import Check, VerifyReport

    cuda = "CUDAExecutionProvider"
    providers = (
        ProviderResult("CPUExecutionProvider", "failed", ERROR, node_count=290),
        ProviderResult(cuda, "unavailable", "this build lacks it", install=INSTALL[cuda]),
    )
    checks = (Check("graphs", "ok", "1,081 nodes in 2 files"),)
    return VerifyReport(Path("out"), "fill-mask", "transformers", None, checks, providers)


def assert_checks_are_shown(lines: list[str], width: int) -> None:
    from modelexport_optimum.providers.needs import INSTALL

    rows = rows_below(lines, "check ", width)
    failed = next(number for number, row in enumerate(rows) if row.startswith("CPUExecution"))
    assert rows[failed].split()[1] == "failed"
    start = rows[failed].index("CPUExecutionProvider:")
    until = next(n for n, row in enumerate(rows) if row.startswith("CUDAExecution"))
    message = " ".join(row[start:] for row in rows[failed:until])
    assert "".join(message.split()) == "".join(ERROR.split())
    assert f"  {INSTALL['CUDAExecutionProvider']}" in lines  # a line of its own, to paste


def test_verify(show: Callable[..., list[str]], width: int) -> None:
    assert_checks_are_shown(show(run_tables.print_verification, verification()), width)


def test_export(show: Callable[..., list[str]], width: int) -> None:
    from modelexport_optimum.export_run import ExportResult
    from modelexport_optimum.exporting.pytorch_comparison import ComparisonWithPyTorch
    from modelexport_optimum.tagging.tag_report import FileReport, TagReport

    output = Path.cwd() / "an export"
    name = "a_folder_with_a_long_name/decoder_with_past_model.onnx"
    evidence = {"tracer": 10, "scope": 1000, "data flow": 71}
    modules = {"bert": "BertModel"}
    file = FileReport(output / name, 1081, modules, evidence, 700, 3, "Bert", True, True)
    result = ExportResult(
        output=output,
        model="bert",
        task="fill-mask",
        files={name: 438_000_000, "config.json": 500},
        tags=TagReport((file,)),
        comparison=ComparisonWithPyTorch("ok", "the outputs equal PyTorch's within 1e-05"),
        verification=verification(),
        warnings=("the checkpoint lacks classifier.weight",),
        stages={},
    )
    lines = show(run_tables.print_export, result, legend=True)
    rows = rows_below(lines, "file ", width)
    assert_left_out_are_said(rows, run_tables._FILE_COLUMNS, width)
    assert "1,081" in rows[1].split()
    assert "scope" in " ".join(rows)
    assert_checks_are_shown(lines, width)
    assert lines[-1] == "  modelexport-optimum inspect 'an export'"
    assert "warning: the checkpoint lacks classifier.weight" in lines


# --- The layout -----------------------------------------------------------------------------------


def test_names_from_a_file_cannot_steer_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "a\x1b[2Jb\u202ec\nd\udcff"
    text = printed(
        monkeypatch,
        80,
        lambda: tables.print_table([Column("name", shrinks="path")], [[Cell(name, "bold")]]),
        colour=True,
    )
    assert text.splitlines()[1] == r"a\x1b[2Jb\u202ec\nd\udcff"


def test_commands_to_paste_are_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "pip install " + " ".join(f"package-{n}" for n in range(30))
    text = printed(monkeypatch, 60, lambda: tables.print_line((command, "bold")), colour=True)
    assert text == f"{command}\n"


def test_a_path_is_shortened_in_its_middle() -> None:
    path = "encoder.layer.0.attention.self.query"
    assert tables.shortened(path, 40) == path
    short = tables.shortened(path, 21)
    assert short == "encoder.la…self.query"
    assert len(tables.shortened("層" * 30, 21)) <= 21


def test_in_a_pipe_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column(f"column {number}") for number in range(20)]
    tables.print_table(columns, [["x" * 30] * 20])
    assert len(capsys.readouterr().out.splitlines()[1]) == 20 * 30 + 19 * 2
