"""Weights outside of a model's directory: no command opens them, whatever names or links say."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import onnx
import pytest
from typer.testing import CliRunner

from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import InvalidModelError
from modelexport_optimum.onnx_file.external_data import open_external_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = b"not this model's"

COMMANDS = {
    "inspect": [],
    "tag": [],
    "strip": [],
    "verify": ["--provider", "cpu"],
    "diff": ["OTHER"],
    "extract": ["--module", "electra.encoder.layer.0", "-o", "cut.onnx"],
    "profile": [],
    "report": ["-o", "report.html"],
}


def lead_out(directory: Path, kind: str) -> None:
    """Put the weights' file elsewhere, and have the model or the directory lead there."""
    secret = directory.parent / "secret"
    data = directory / "model.onnx_data"
    shutil.copy(data, secret)
    location = {
        "absolute": str(secret),
        "parent": "../secret",
        "parent in the middle": "sub/../../secret",
        "folder": "sub/secret",
    }.get(kind, data.name)
    if kind == "link":
        data.unlink()
        data.symlink_to(secret)
    elif kind == "hard link":
        data.unlink()
        data.hardlink_to(secret)
    elif kind == "folder":
        (directory / "sub").symlink_to(directory.parent)
    path = directory / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def place(tmp_path: Path, tagged: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a tagged export whose weights are in a file of their own."""
    directory = shutil.copytree(tagged("electra"), tmp_path / "export")
    path = directory / "model.onnx"
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="model.onnx_data",
        size_threshold=0,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return directory


@pytest.mark.parametrize(
    "kind", ["absolute", "parent", "parent in the middle", "link", "folder", "hard link"]
)
def test_every_command_refuses(
    kind: str, place: Path, tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    lead_out(place, kind)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.load(place / "model.onnx")
    before = {path: path.lstat().st_mtime_ns for path in place.rglob("*")}
    for command, arguments in COMMANDS.items():
        given = [str(tagged("electra")) if word == "OTHER" else word for word in arguments]
        result = CliRunner().invoke(app, [command, str(place), *given])
        status = {"verify": 3, "diff": 2}.get(command, 1)
        assert result.exit_code == status, (command, result.output)
        said = result.stdout if command == "verify" else result.stderr
        assert "keeps weights" in " ".join(said.split()), (command, said)
        if command != "verify":
            assert len(said.strip().splitlines()) == 1, (command, said)
    assert {path: path.lstat().st_mtime_ns for path in place.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "secret"]


def test_the_same_files_as_onnx(tmp_path: Path) -> None:
    """What `onnx` opens in a directory is opened, and nothing that it refuses."""
    model = tmp_path / "model" / "model.onnx"
    (model.parent / "sub").mkdir(parents=True)
    outside = tmp_path / "outside"
    for path in (model, model.parent / "weights", model.parent / "sub" / "weights", outside):
        path.write_bytes(SECRET)
    (model.parent / "link").symlink_to("weights")
    (model.parent / "dangling").symlink_to("nowhere")
    (model.parent / "folder").symlink_to("sub")
    (model.parent / "hard").hardlink_to(outside)
    if hasattr(os, "mkfifo"):  # elsewhere it is a file that is not there
        os.mkfifo(model.parent / "pipe")
    (tmp_path / "place").symlink_to("model")  # the way to the model itself may lead over links
    opened = []
    for location in (
        *("weights", "./weights", "sub/weights", "sub//weights", "sub/../weights", "link", "."),
        *("dangling", "folder/weights", "hard", "pipe", "sub", "nowhere", "weights/inner", ".."),
        *("../outside", "../model/weights", str(outside), str(model.parent / "weights")),
        "n" * 300,
    ):
        ours, onnxs = "opened", "opened"
        try:
            os.close(open_external_data(tmp_path / "place" / "model.onnx", location))
        except InvalidModelError:
            ours = "refused"
        tensor = onnx.TensorProto(
            data_location=onnx.TensorProto.EXTERNAL,
            external_data=[onnx.StringStringEntryProto(key="location", value=location)],
        )
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(model.parent))
        except (onnx.checker.ValidationError, OSError, RuntimeError):
            onnxs = "refused"
        assert (location, ours) == (location, onnxs)
        if ours == "opened":
            opened.append(location)
    assert opened == ["weights", "./weights", "sub/weights", "sub//weights", "sub/../weights"]
