"""What is missing is named in one line, with the way that works: a package, or Optimum's support.

Here packages are hidden; `make test-wheel` installs the package without its dependencies.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import pytest
import zoo

import modelexport_optimum as package
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.packages import OTHER_EXPORTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have Python say that packages are not there."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def stripped(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(exported("bert"), tmp_path / "bert")


def test_what_runs_a_graph_asks_for_onnxruntime(
    tagged: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tagged("bert")
    hide(monkeypatch, "onnxruntime")
    said = r"^onnxruntime is not installed, but needed here: pip install onnxruntime$"
    for run in (package.verify, package.profile, package.compare):
        with pytest.raises(ModelExportError, match=said):
            run(directory)
    with pytest.raises(ModelExportError, match=said):
        package.export(directory, tmp_path / "export")
    assert not any(tmp_path.iterdir())


def test_tag_asks_for_what_builds_the_model(
    stripped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "huggingface_hub", "torch", "transformers")
    said = (
        r"^transformers, torch are not installed, but needed here: pip install transformers torch$"
    )
    for model in (None, str(stripped)):
        with pytest.raises(ModelExportError, match=said):
            package.tag(stripped, model=model)
    (stripped / "config.json").unlink()
    assert package.tag(stripped).files[0].changed  # the names alone


def test_model_whose_library_is_missing_is_no_fault_of_its_config(stripped: Path) -> None:
    (stripped / "config.json").write_text(
        json.dumps({"model_type": "timm_backbone", "architectures": ["TimmBackbone"]})
    )
    with pytest.raises(ModelExportError, match=r"cannot be built here: .*timm") as told:
        package.tag(stripped)
    assert "repair it" not in str(told.value)


def test_pipeline_whose_library_is_missing(stripped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stripped / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    hide(monkeypatch, "diffusers")
    with pytest.raises(ModelExportError, match=r"^diffusers is not installed, but needed here"):
        package.tag(stripped)


MIXTRAL = {**zoo.LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
"""Of a model type that transformers 4.57 knows and Optimum does not export."""


def test_model_that_optimum_cannot_export_is_told_the_way_that_works(tmp_path: Path) -> None:
    """Whether the task is told or not; `test_wrong_input` has more."""
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(MixtralConfig(**MIXTRAL))
    model.save_pretrained(tmp_path / "mixtral")
    newer = tmp_path / "newer"  # of transformers 5
    newer.mkdir()
    (newer / "config.json").write_text('{"model_type": "afmoe", "architectures": ["AfmoeModel"]}')
    for source, task, kind in (
        (tmp_path / "mixtral", "auto", "mixtral"),
        (model, "auto", "mixtral"),
        (model, "text-generation", "mixtral"),
        (newer, "auto", "afmoe"),
    ):
        with pytest.raises(ModelExportError) as told:
            package.export(source, tmp_path / "out", task=task)
        said = f"Optimum cannot export {kind} models: {OTHER_EXPORTER}; export() in Python takes "
        assert str(told.value) == f"{said}custom_onnx_configs for them"
