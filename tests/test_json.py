"""Every document of `--json` is as its schema in docs/schemas says, and nothing else is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from schemas import SCHEMAS, valid
from typer.testing import CliRunner

from modelexport_optimum import inspect
from modelexport_optimum.cli.main import app
from modelexport_optimum.cli.view_tables import MODULE_FIELDS, NODE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable


def run(schema: str, *arguments: str | Path, status: int = 0) -> Any:
    """What a command prints with `--json`, checked."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == status, done.output
    return valid(json.loads(done.stdout), schema)


@pytest.fixture(scope="module")
def bert(tagged: Callable[[str], Path]) -> Path:
    return tagged("bert")


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_schema_is_one(path: Path) -> None:
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert f"[{path.name}]({path.name})" in (SCHEMAS / "README.md").read_text()


def test_inspect(bert: Path, tagged: Callable[[str], Path]) -> None:
    document = run("inspect", "inspect", bert)
    assert document["files"][0]["file"] == str(bert / "model.onnx")
    assert len(run("inspect", "inspect", tagged("t5"))["files"]) > 1
    nodes = run("inspect-nodes", "inspect", bert, "--nodes", "--op", "MatMul")
    assert {node["op_type"] for node in nodes["files"][0]["nodes"]} == {"MatMul"}


def test_csv_has_the_words_of_json(bert: Path) -> None:
    (file,) = inspect(bert).to_dict()["files"]
    assert set(MODULE_FIELDS) == {"file", *file["modules"][0]} - {"op_type_counts"}
    (file,) = inspect(bert).nodes_to_dict()["files"]
    assert set(NODE_FIELDS) == {"file", *file["nodes"][0]}


def test_diff(bert: Path, tagged: Callable[[str], Path]) -> None:
    assert run("diff", "diff", bert, bert)["same"] is True
    other = tagged("electra") / "model.onnx"
    assert run("diff", "diff", bert / "model.onnx", other, status=1)["same"] is False


def test_extract(bert: Path, tmp_path: Path) -> None:
    layer = "bert.encoder.layer.0"
    found = run("extract", "extract", bert, "--module", layer, "-o", tmp_path / "layer.onnx")
    assert (found["module"], found["class"]) == (layer, "BertLayer")


def test_profile_and_report(bert: Path, tmp_path: Path) -> None:
    times = run("profile", "profile", bert, "--iterations", "2", "--sequence-length", "8")
    (tmp_path / "times.json").write_text(json.dumps(times))
    page = tmp_path / "page.html"
    written = run("report", "report", bert, "-o", page, "--profile", tmp_path / "times.json")
    assert written == {"ok": True, "file": str(page), "bytes": page.stat().st_size}


def test_strip(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "bert")
    files = run("strip", "strip", tmp_path / "bert")["files"]
    assert [Path(file["file"]).name for file in files] == ["model.onnx", "config.json"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["inspect", "nope"], 2),
        (["diff", "nope", "nope"], 2),
        (["report", "nope", "-o", "page.html"], 2),
        (["inspect", "--dept", "1"], 2),
        (["verfy", "nope"], 2),
        (["extract", "nope"], 2),
    ],
)
def test_errors(arguments: list[str], status: int) -> None:
    assert run("error", *arguments, status=status)["exit_status"] == status
