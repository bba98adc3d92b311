"""`report`: memory, placement and times alone, from the profiles that it is given."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from test_views_report import data_of

from modelexport_optimum import profile
from modelexport_optimum.errors import UsageError
from modelexport_optimum.profiling.profile_report import ProfileReport
from modelexport_optimum.providers.placement import PlacedModule, Placement
from modelexport_optimum.reporting.report import report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU, OTHER = "CPUExecutionProvider", "OtherExecutionProvider"
LAYER = "bert.encoder.layer.0"


@pytest.fixture(scope="module")
def found(tagged: Callable[[str], Path]) -> ProfileReport:
    """A profile with the modules measured alone, and a layer that another provider left."""
    report = profile(tagged("bert"), iterations=2, sequence_length=8, isolated=True, depth=3)
    (file,) = report.files
    placement = Placement(
        file=file.file,
        provider=OTHER,
        recorded=True,
        providers={OTHER: 100, CPU: 7},
        modules=(
            PlacedModule("", "", "Bert", 0, {OTHER: 98}, {OTHER: 98, CPU: 7}),
            PlacedModule(LAYER, LAYER, "BertLayer", 3, {CPU: 7}, {CPU: 7}, {"Add": 7}),
        ),
        unplaced=((OTHER, "Cast", 2),),
        crossings=(),
    )
    return ProfileReport((replace(file, placement=placement),))


def measures(page: Path) -> dict[str, dict[str, Any]]:
    part = data_of(page.read_text())
    place = {path: index for index, path in enumerate(part["modules"]["path"])}
    return {
        one["key"]: {**one, "total": {path: one["total"][at] for path, at in place.items()}}
        for one in part["measures"]
    }


def test_measures_of_a_profile(
    tagged: Callable[[str], Path], found: ProfileReport, tmp_path: Path
) -> None:
    shown = measures(report(tagged("bert"), tmp_path / "page.html", profile=found))
    (file,) = found.files
    activations = shown["activations"]
    assert sum(activations["own"]) + activations["rest"] == file.activations
    assert activations["total"][LAYER] == next(
        m.activations for m in file.modules if m.module == LAYER
    )
    assert shown["peak"]["total"][""] == file.peak
    assert not shown["peak"]["additive"]
    assert shown[f"on {CPU}"]["total"][LAYER] == shown[f"on {CPU}"]["total"]["bert"] == 7
    assert (shown[f"on {OTHER}"]["whole"], shown[f"on {OTHER}"]["rest"]) == (100, 2)
    assert file.isolated is not None
    assert shown["alone"]["whole"] == pytest.approx(file.isolated.sum_ms)
    assert shown["alone"]["total"][LAYER] > 0
    assert shown["alone"]["total"][f"{LAYER}.attention"] is None
    notes = " ".join(data_of((tmp_path / "page.html").read_text())["notes"])
    assert f"{OTHER} runs 100 of 107 nodes; on {CPU}: {LAYER} (7 Add), which keep" in notes
    assert "Each module alone on CPUExecutionProvider" in notes


def test_several_sizes_are_several_times(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    found = profile(tagged("bert"), iterations=1, batch_size=[1, 2], sequence_length=8)
    shown = measures(report(tagged("bert"), tmp_path / "page.html", profile=found))
    assert [one["label"] for key, one in shown.items() if key.startswith("time")] == [
        "Time batch 1",
        "Time batch 2",
    ]


def test_both_branches_of_a_merged_decoder(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    merged = tagged("t5") / "decoder_model_merged.onnx"
    shown = measures(report(merged, tmp_path / "page.html", profile=profile(merged, iterations=1)))
    assert {one["label"] for key, one in shown.items() if key.startswith("time")} == {
        "Time use_cache_branch=false",
        "Time use_cache_branch=true",
    }


def test_a_profile_of_an_older_version(
    tagged: Callable[[str], Path], found: ProfileReport, tmp_path: Path
) -> None:
    document = found.to_dict()
    (file,) = document["files"]
    for name in ("activation_bytes", "peak_bytes", "placement", "isolated", "branch"):
        del file[name]
    del file["batch_size"], file["sequence_length"]
    for row in file["modules"]:
        for name in ("activation_bytes", "own_activation_bytes", "peak_bytes"):
            del row[name]
    saved = tmp_path / "profile.json"
    saved.write_text(json.dumps(document))
    shown = measures(report(tagged("bert"), tmp_path / "page.html", profile=saved))
    assert "time" in shown
    assert not {"activations", "peak", "alone"} & shown.keys()


@pytest.mark.parametrize("part", ["placement", "isolated"])
def test_modules_that_are_not_there_are_refused(
    part: str, tagged: Callable[[str], Path], found: ProfileReport, tmp_path: Path
) -> None:
    document = found.to_dict()
    document["files"][0][part]["modules"][0]["module"] = "renamed"
    saved = tmp_path / "profile.json"
    saved.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="has no module renamed"):
        report(tagged("bert"), tmp_path / "page.html", profile=saved)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("placement", {"modules": []}),
        ("placement", 3),
        ("isolated", {"provider": 1}),
        ("branch", {"a": 1}),
        ("peak_bytes", "many"),
        ("modules", 1),
    ],
)
def test_another_form_is_refused(
    part: str,
    value: object,
    tagged: Callable[[str], Path],
    found: ProfileReport,
    tmp_path: Path,
) -> None:
    document = found.to_dict()
    document["files"][0][part] = value
    saved = tmp_path / "profile.json"
    saved.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="is not the output of `profile --json`"):
        report(tagged("bert"), tmp_path / "page.html", profile=saved)
