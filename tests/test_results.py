"""What all results and commands have in common: a short `repr`, where they write, their hints."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from typer.testing import CliRunner

from modelexport_optimum import (
    UsageError,
    diff,
    extract,
    inspect,
    profile,
    read_hierarchy,
    report,
    strip,
)
from modelexport_optimum.cli import printing
from modelexport_optimum.cli.main import app
from modelexport_optimum.comparing.comparison import Comparison, ModuleComparison, OutputComparison
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system import notebook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bert(tagged: Callable[[str], Path]) -> Path:
    return tagged("bert")


@pytest.fixture
def untagged(tagged: Callable[[str], Path], tmp_path: Path) -> Path:
    """An export of several files without tags, in a directory whose name the shell would split."""
    directory = tmp_path / "an export"
    shutil.copytree(tagged("t5"), directory)
    strip(directory)
    return directory


# --- repr -----------------------------------------------------------------------------------------


def results(bert: Path, tmp_path: Path) -> Iterator[Any]:
    """Results of every view, and what is in them."""
    views = inspect(bert)
    yield from (*views, *views[0].modules[:3], *views[0].nodes[:3], views[0].whole)
    yield from (views[0].file, views[0].file.root)
    other = tmp_path / "model.onnx"
    model = onnx.load(bert / "model.onnx")
    model.graph.node[-1].doc_string = "/BertForMaskedLM"
    onnx.save(model, other)
    found = diff(bert / "model.onnx", other)
    yield from (found, *found.files, *found.files[0].modules)
    cut = extract(bert, "bert.encoder.layer.0", tmp_path / "layer.onnx")
    yield from (cut, cut.inputs[0])
    times = profile(bert, iterations=1, sequence_length=8)
    yield from (times, times.files[0], times.files[0].modules[0])


def test_every_result_has_a_short_repr_and_a_table(bert: Path, tmp_path: Path) -> None:
    for result in results(bert, tmp_path):
        text = repr(result)
        assert text.startswith(f"{type(result).__name__}(")
        assert len(text) < 1200
        page = result._repr_html_()
        assert "<table>" in page
        assert len(page) < 60_000


def test_a_notebook_shows_names_as_text(bert: Path, tmp_path: Path) -> None:
    model = onnx.load(bert / "model.onnx")
    evil = "<script>alert(1)<script>'\""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = f"/BertForMaskedLM/{evil}.bert\x1b"
    onnx.save(model, tmp_path / "model.onnx")
    for page in (
        inspect(tmp_path / "model.onnx")._repr_html_(),
        profile(tmp_path / "model.onnx", iterations=1, sequence_length=8)._repr_html_(),
        diff(tmp_path / "model.onnx", bert / "model.onnx")._repr_html_(),
    ):
        assert "&lt;script&gt;alert(1)&lt;script&gt;&#x27;&quot;" in page
        assert "bert\\x1b" in page
        assert "<script>" not in page


def test_a_notebook_shows_what_differs_the_worst_first() -> None:
    found = [
        ModuleComparison(path, "Linear", 0, "model.onnx", relative=error, own_relative=own)
        for path, error, own in (("a", 1e-6, None), ("b", math.nan, 0.5), ("c", 0.2, 1e-7))
    ]
    outputs = (OutputComparison("model.onnx", "logits", math.inf, None),)
    page = Comparison("PyTorch", "x", 1e-4, ("b",), tuple(found), outputs)._repr_html_()
    assert "<div class='bad'>differ by themselves: b</div>" in page
    rows = re.findall("<tr><td>(.)</td><td>Linear</td><td>(.*?)</td><td>(.*?)</td>", page)
    assert rows == [("b", "nan", "5.0e-01"), ("c", "2.0e-01", "1.0e-07"), ("a", "1.0e-06", "")]


def test_treemaps_are_whole_and_bounded() -> None:
    wide = [notebook.Part(0, "Root", "", "Root", 1000.0, 0.0, ())]
    wide += [
        notebook.Part(level, f"m{i}", f"m{i}", "<b>", size, 0.0, ())
        for i in range(500)
        for level, size in ((1, 2.0), (2, 1.0), (2, 1.0))
    ]
    deep = [notebook.Part(i, f"m{i}", f"m{i}", "A", 5.0, 0.0, ("1",)) for i in range(5000)]
    for parts in (wide, deep, wide[:4], [notebook.Part(0, "R", "", "R", 0.0, 0.0, ())]):
        page = notebook.treemap(parts, str) + notebook.tree(("x",), parts)
        assert len(page) < 20_000
        assert "<b>" not in page
        found = re.findall(r"left:(.*?)%;top:(.*?)%;width:(.*?)%;height:(.*?)%", page)
        boxes = [tuple(map(float, box)) for box in found]
        assert all(x + wide <= 100.1 and y + high <= 100.1 for x, y, wide, high in boxes)
        if parts[0].size:
            assert sum(wide * high for *_, wide, high in boxes) == pytest.approx(10_000, rel=0.02)


# --- Names are data -------------------------------------------------------------------------------


def test_no_cell_is_a_formula(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a=1", "\x1b]0;title\x07"]
    printing.print_rows(({"name": name, "bytes": 3} for name in names), ("name", "bytes"), "csv")
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [
        *("'=1+1,3", "'+1,3", "'-1,3", "'@SUM(A1),3", "'\\t=1,3", "'\\r=1,3", "a=1,3"),
        "\\x1b]0;title\\x07,3",
    ]


def test_cells_of_markdown_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_rows([{"name": "a|b<img>\n"}], ("name",), "markdown")
    assert capsys.readouterr().out.splitlines()[-1] == "| a\\|b&lt;img>\\\\n |"


def test_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BaseException), printing.exit_on_error(as_json=True):  # noqa: B017
        raise ModelExportError("node \x1b[2J is wrong")
    out, err = capsys.readouterr()
    assert err == "error: node \\x1b[2J is wrong\n"
    assert json.loads(out)["error"] == "node \x1b[2J is wrong"


def test_charts_show_names_as_text(bert: Path, tmp_path: Path) -> None:
    model = onnx.load(bert / "model.onnx")
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = "/BertForMaskedLM/<a href='//evil'>x</a>.bert"
    onnx.save(model, tmp_path / "model.onnx")
    page = report(tmp_path / "model.onnx", tmp_path / "page.html").read_text()
    assert "<a href='//evil'" not in page
    assert "\\u003ca href" not in page.partition('class="chart"')[2].partition("<h3>")[0]


# --- Outputs and hints ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "suffix"),
    [(["extract", "--module", "bert.encoder.layer.0"], ".onnx"), (["report"], ".html")],
)
def test_one_rule_for_outputs(
    arguments: list[str], suffix: str, bert: Path, tmp_path: Path
) -> None:
    command, *options = arguments
    there = tmp_path / f"there{suffix}"
    there.write_text("mine")
    directory = tmp_path / f"directory{suffix}"
    directory.mkdir()
    for output, more, said in (
        (there, [], f"{there} exists: give another file to write, or --overwrite"),
        (directory, ["--overwrite"], f"{directory} is a directory: give a {suffix} file to write"),
        (tmp_path / "other", [], f"{tmp_path / 'other'} is not a {suffix} file: give the output"),
    ):
        done = run(command, bert, *options, "-o", output, *more)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"error: {said}")
    assert there.read_text() == "mine"
    assert not (tmp_path / "other").exists()
    assert run(command, bert, *options, "-o", there, "--overwrite").exit_code == 0
    assert there.stat().st_size > 100


@pytest.mark.parametrize("command", ["inspect", "profile", "view", "report", "extract", "diff"])
def test_the_hint_names_what_was_given(command: str, untagged: Path) -> None:
    options = {
        "report": ["-o", "page.html"],
        "extract": ["--module", "encoder", "-o", "encoder.onnx"],
        "diff": [str(untagged)],
    }
    done = run(command, untagged, *options.get(command, []))
    hint = f"run `modelexport-optimum tag {shlex.quote(str(untagged))}`"
    assert done.stderr.splitlines()[-1].endswith(hint)


def test_read_hierarchy_raises_at_once(untagged: Path) -> None:
    with pytest.raises(UsageError, match="nope does not exist"):
        read_hierarchy("nope")
    with pytest.raises(ModelExportError, match=r"tag '.*an export'`"):
        next(read_hierarchy(untagged))
