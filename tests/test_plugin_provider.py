"""The commands on a real provider that is a plugin: ggml, which runs on this machine's CPU.

`make test-providers` runs this with the packages `onnxruntime-ggml` and the onnxruntime that it
needs. ggml takes a graph as a whole or leaves it as a whole, and compiles what it takes.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from modelexport_optimum import compare, profile, verify
from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.providers.choice import choose_provider
from modelexport_optimum.providers.listing import PLUGIN, list_providers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tagged = Callable[[str], Path]

if os.environ.get("TEST_RUNTIME") != "ggml":
    pytest.skip("run by `make test-providers`", allow_module_level=True)

WHOLE = ["bert", "roberta", "gpt2", "distilbert", "albert"]
"""Architectures of which it takes every node."""

LEFT = {"resnet": "MaxPool", "sentence-transformers": "ReduceL2"}
"""Those that it leaves to the CPU, with an operator that it says it lacks."""


def test_it_is_found_by_its_name() -> None:
    (row,) = [one for one in list_providers().providers if one.name == "ggml"]
    assert row.kind == PLUGIN
    assert row.package is not None
    assert row.package.startswith("onnxruntime-ggml ")
    assert [device.type for device in row.devices] == ["CPU"]


def test_it_is_a_plugin_still_when_it_is_loaded(tagged: Tagged) -> None:
    """ONNX Runtime then offers it as if it were built in; Optimum does not."""
    profile(tagged("bert"), provider="ggml", iterations=1)
    assert choose_provider("ggml").library is not None
    test_it_is_found_by_its_name()


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_it_runs_as_a_whole(name: str, tagged: Tagged) -> None:
    cpu, ggml = verify(tagged(name), providers=["cpu", "ggml"], by_module=True).providers
    assert (cpu.status, ggml.status) == ("ok", "ok"), ggml.message
    assert ggml.node_count > 0
    assert ggml.max_difference is not None
    for file in profile(tagged(name), provider="ggml", iterations=1).files:
        assert file.placement is not None
        assert file.placement.answer().startswith("ggml runs the whole model: ")
        assert list(file.providers) == ["ggml"]


@pytest.mark.parametrize("name", LEFT)
def test_what_it_leaves_is_no_silent_fallback(name: str, tagged: Tagged) -> None:
    placements = [
        file.placement for file in profile(tagged(name), provider="ggml", iterations=1).files
    ]
    left = [one for one in placements if one is not None and not one.providers.get("ggml")]
    assert left
    answers = [one.answer() for one in left]
    assert all("ggml runs nothing: all " in answer for answer in answers)
    assert any(f"1 {LEFT[name]})" in answer for answer in answers)
    result = verify(tagged(name), providers=["ggml"]).providers[-1]
    assert result.status == "failed"
    assert "\n" not in result.message


def test_modules_alone(tagged: Tagged) -> None:
    """One kernel runs the whole graph, in which no module is seen: alone, each is."""
    (file,) = profile(tagged("bert"), provider="ggml", iterations=1, isolated=True).files
    assert [module.module for module in file.modules] == []
    assert file.isolated is not None
    assert file.isolated.whole_ms > 0
    taken = [one.taken for one in file.isolated.modules if one.taken is not None]
    assert len(taken) == len(file.isolated.modules) > 2
    assert any(own == of for own, of in taken)


def test_compare_finds_no_culprit(tagged: Tagged) -> None:
    # Its weights are float16 unless it is told otherwise.
    options = {"weights": "f32"}
    found = compare(tagged("bert"), provider="ggml", provider_options=options)
    assert found.ok, found.culprits
    # It is ggml that ran them: it rounds otherwise.
    assert max(row.relative or 0 for row in found.modules) > 0


def test_a_model_that_it_cannot_run_ends_in_one_line(
    tagged: Tagged, capfd: pytest.CaptureFixture[str]
) -> None:
    """It takes two-dimensional convolutions, and fails when it runs them."""
    with pytest.raises(ModelExportError, match="ONNX Runtime cannot run") as caught:
        profile(tagged("vit"), provider="ggml", iterations=1)
    assert "\n" not in str(caught.value)
    capfd.readouterr()
    done = CliRunner().invoke(
        app, ["verify", str(tagged("vit")), "--provider", "cpu", "--provider", "ggml", "--json"]
    )
    cpu, ggml = json.loads(done.stdout)["providers"]
    assert (cpu["status"], ggml["status"]) == ("ok", "failed")
    assert done.exit_code == 3
