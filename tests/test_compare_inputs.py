"""What `compare` is given: inputs that do not fit, sides that do not, and what it says then."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_compare import planted, run

from modelexport_optimum import ModelExportError, UsageError, compare, strip, tag
from modelexport_optimum.exporting.torch_reference import torch_parts
from modelexport_optimum.system.lean_imports import EXPORTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tagged = "Callable[[str], Path]"
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def arrays_file(path: Path, **changed: np.ndarray) -> Path:
    """A file of inputs for a BERT, with some of them changed."""
    arrays: dict[str, Any] = {name: np.ones((1, 5), np.int64) for name in NAMES}
    np.savez(path, **(arrays | changed))
    return path


def test_inputs_that_do_not_fit(tagged: Tagged, tmp_path: Path) -> None:
    bert = tagged("bert")
    takes = r"and .*model.onnx takes int64\[batch_size, sequence_length\]"
    for number, (array, said) in enumerate(
        (
            (np.ones((1, 5), np.float32), rf"input_ids is float32\[1, 5\], {takes}"),
            (np.ones(5, np.int64), rf"input_ids is int64\[5\], {takes}"),
        )
    ):
        file = arrays_file(tmp_path / f"{number}.npz", input_ids=array)
        with pytest.raises(UsageError, match=said):
            compare(bert, bert, inputs=file)
    np.savez(tmp_path / "other.npz", ids=np.ones((1, 5), np.int64))
    with pytest.raises(UsageError, match=r"has no array input_ids, .* it has ids"):
        compare(bert, bert, inputs=tmp_path / "other.npz")


def test_a_size_that_no_input_has(tagged: Tagged) -> None:
    bert = tagged("bert")
    said = "--size height=8 changes no input of .*, whose dimensions are batch_size, sequence_len"
    with pytest.raises(UsageError, match=said):
        compare(bert, bert, sizes={"height": 8})


def test_inputs_that_pytorch_does_not_take(
    tagged: Tagged, model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    file = arrays_file(tmp_path / "inputs.npz", input_ids=np.full((1, 5), 10**9))
    with pytest.raises(ModelExportError, match=r"PyTorch cannot run .*IndexError.*: give others"):
        compare(tagged("bert"), model=str(model_directory("bert")), inputs=file)


def test_optimum_is_as_it_was_after_a_comparison_that_imported_it(
    model_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = importlib.import_module("optimum.exporters.onnx")
    monkeypatch.setattr(package, "__main__", importlib.import_module(EXPORTER))  # given back after
    assert package.main_export  # of which the package keeps the one that it gave first
    monkeypatch.delattr(package, "main_export")
    monkeypatch.delitem(sys.modules, EXPORTER)
    assert torch_parts(str(model_directory("bert")), "feature-extraction")
    convert = importlib.import_module("optimum.exporters.onnx.convert")
    assert sys.modules[EXPORTER].onnx_export_from_model is convert.onnx_export_from_model


def test_a_text_goes_to_every_file_that_takes_it(tagged: Tagged, tmp_path: Path) -> None:
    # The decoder with a cache and the merged one get it, too.
    planted(tagged("gpt2"), tmp_path / "broken", "model.onnx", "transformer.wpe.weight")
    found = compare(tagged("gpt2"), tmp_path / "broken", text="the quick brown fox")
    assert found.culprits == ("transformer.wpe",)
    found = compare(tagged("t5"), tagged("t5"), text="the quick brown fox", samples=2)
    assert found.ok
    assert len({row.file for row in found.modules}) == 5


def test_a_text_that_cannot_be_given(tagged: Tagged) -> None:
    with pytest.raises(UsageError, match="no tokenizer that can be loaded"):
        compare(tagged("resnet"), tagged("resnet"), text="the quick brown fox")
    with pytest.raises(UsageError, match="makes no token of it"):
        compare(tagged("gpt2"), tagged("gpt2"), text="")


def test_a_source_that_has_gone(tagged: Tagged, tmp_path: Path) -> None:
    shutil.copytree(tagged("bert"), tmp_path / "export")
    strip(tmp_path / "export")
    tag(tmp_path / "export", source=str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"was made from .*gone, which cannot .*: give --model"):
        compare(tmp_path / "export")


def test_sides_that_do_not_fit(tagged: Tagged, tmp_path: Path) -> None:
    # An output of one name and shape may be all that two have in common; of these nothing is.
    with pytest.raises(ModelExportError, match="have no module and no output in common"):
        compare(tagged("albert"), tagged("bert"))
    with pytest.raises(ModelExportError, match=r"takes token_type_ids, but the file .* does not"):
        compare(tagged("bert"), tagged("gpt2"))
    less = tmp_path / "less"
    shutil.copytree(tagged("t5"), less)
    (less / "decoder_model_merged.onnx").unlink()
    for sides in ((tagged("t5"), less), (less, tagged("t5"))):
        done = run(*sides, "--json")
        missing = str(tagged("t5") / "decoder_model_merged.onnx")
        assert json.loads(done.stdout)["unpaired"] == [missing]
    assert f"{missing}: the other side has no such file" in run(*sides, "--depth", 0).stdout


def test_a_damaged_constant(tagged: Tagged, tmp_path: Path) -> None:
    bert, broken = tagged("bert"), tmp_path / "broken"
    shutil.copytree(bert, broken)
    model = onnx.load(broken / "model.onnx")
    constant = next(node for node in model.graph.node if node.op_type == "Constant")
    constant.attribute[0].t.dims[:] = [1] * 100
    onnx.save(model, broken / "model.onnx")
    for sides in ((bert, broken), (broken, bert)):
        with pytest.raises(ModelExportError, match=r"cannot run .*broken"):
            compare(*sides)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number(value: float, tagged: Tagged, tmp_path: Path) -> None:
    bert, broken = tagged("bert"), tmp_path / "broken"
    shutil.copytree(bert, broken)
    model = onnx.load(broken / "model.onnx")
    name = "bert.encoder.layer.0.output.dense.bias"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, broken / "model.onnx")
    for sides in ((bert, broken), (broken, bert)):
        found = compare(*sides)
        assert found.culprits == ("bert.encoder.layer.0.output.dense",)
    assert compare(broken, broken).ok
    assert "own unbounded" in run(bert, broken).stdout
