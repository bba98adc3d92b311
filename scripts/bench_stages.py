"""Each stage of an export beside Optimum's, and what `tag` takes beside its imports."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from measure import python, seconds, whole

if TYPE_CHECKING:
    from measure import Report

OPTIMUM = """
import json, sys, time
started, stages = time.perf_counter(), {}
def stage(name):
    global started
    now = time.perf_counter()
    stages[name] = now - started
    started = now
import optimum.exporters.onnx.__main__ as program
from optimum.exporters.onnx import convert
stage("import")
export, compare = program.onnx_export_from_model, convert.validate_models_outputs
def loaded(*args, **kwargs):
    stage("load")
    export(*args, **kwargs)
def exported(*args, **kwargs):
    stage("export")
    compare(*args, **kwargs)
    stage("compare")
program.onnx_export_from_model, convert.validate_models_outputs = loaded, exported
program.main_export(sys.argv[1], sys.argv[2], task="text-classification")
print(json.dumps(stages))
"""

OURS = """
import json, sys
from modelexport_optimum import export
print(json.dumps(export(sys.argv[1], sys.argv[2], task="text-classification").stages))
"""

IMPORTS = "import torch; from transformers import BertForSequenceClassification"
"""What `tag` cannot do without: PyTorch and the model's class."""


def bench_stages(report: Report, name: str, source: Path, runs: int, work: Path) -> None:
    """Each stage beside Optimum's, in turn. The check is compared with nothing."""
    taken: dict[str, list[dict[str, float]]] = {OPTIMUM: [], OURS: []}
    for _ in range(runs):
        for code, found in taken.items():
            output = work / "stages"
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            found.append(python(code, source, output))
    for stage in taken[OURS][0]:
        theirs, ours = (
            statistics.median(run.get(stage, 0.0) for run in found) for found in taken.values()
        )
        report.add_without_bound(f"stage {stage}", name, seconds(ours), seconds(theirs))


def bench_tag(report: Report, name: str, export: Path, runs: int, work: Path) -> None:
    """`tag DIR` as a whole process, against importing PyTorch and the model's class."""
    ours, imports = [], []
    for _ in range(runs):
        copy = work / "tag"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(export, copy)
        os.sync()
        imports.append(whole([sys.executable, "-c", IMPORTS])["seconds"])
        command = Path(sys.executable).parent / "modelexport-optimum"
        ours.append(whole([command, "tag", copy])["seconds"])
    left, right = statistics.median(ours), statistics.median(imports)
    report.add("tag DIR / its imports", name, seconds(left), seconds(right), left / right, 1.1)
