"""Nothing is imported that only an extra brought along, until a model needs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = """
import gc, json, sys
from modelexport_optimum import export, tag
from modelexport_optimum.system.lean_imports import EXPORT_CONFIGS, import_lean

def loaded():
    return [name for name in ("sklearn", "scipy", "diffusers", "sentence_transformers")
            if name in sys.modules]

text, pipeline, exported, output = sys.argv[1:]
found = {}
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]))
import_lean(EXPORT_CONFIGS)
kept = [[] for _ in range(5000)]
gc.callbacks.clear()
found["collections"] = [collections.count(generation) for generation in (0, 1, 2)]
tag(exported)
found["tag"] = loaded()
found["exporter"] = "optimum.exporters.onnx.convert" in sys.modules
def began(stage, seconds):
    if stage == "export" and seconds is None:
        found["runtime"] = "onnxruntime" in sys.modules
found["text"] = [export(text, output + "/text", progress=began).ok, *loaded()]
found["pipeline"] = [export(pipeline, output + "/pipeline").ok, *loaded()]
import transformers.generation.candidate_generator as generation
import transformers.loss.loss_rt_detr as loss
first = generation.roc_curve([0, 1], [0.2, 0.7])
found["curve"] = [list(first[1]), generation.roc_curve.__module__]
rows, columns = loss.linear_sum_assignment([[1, 2], [0, 3]])
found["assignment"] = [list(map(int, rows)), list(map(int, columns))]
json.dump(found, sys.stdout)
"""


def test_only_what_a_model_needs(
    model_directory: Callable[[str], Path], exported: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(exported("bert"), tmp_path / "copy")
    paths = model_directory("bert"), model_directory("stable-diffusion"), copy, tmp_path
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    youngest, older, all_objects = found["collections"]
    assert youngest > 0, "the collector is on again"
    assert older == all_objects == 0, "it looked through what importing made"
    assert found["tag"] == []
    assert not found["exporter"]
    assert not found["runtime"], "it adds to the memory that the exporter needs"
    assert found["text"] == [True]
    assert found["pipeline"][:1] == [True]
    assert "diffusers" in found["pipeline"]
    assert found["curve"] == [[0.0, 1.0, 1.0], "sklearn.metrics._ranking"]
    assert found["assignment"] == [[0, 1], [1, 0]]
