"""The whole command and each of its stages beside `optimum-cli`'s, and `tag` beside its imports."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from measure import median, megabytes, seconds, whole

if TYPE_CHECKING:
    from measure import Report

TASK = ("--task", "text-classification")

# The program itself, with a clock at the places where a stage of ours ends.
OPTIMUM = """
import json, sys, time
started, stages = time.perf_counter(), {}
def stage(name):
    global started
    now = time.perf_counter()
    stages[name] = now - started
    started = now
import optimum.commands.optimum_cli as cli
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
cli.main()
print(json.dumps({"stages": stages}))
"""

LIBRARIES = "import optimum.exporters.onnx.__main__, optimum.onnxruntime"

IMPORTS = "import torch; from transformers import BertForSequenceClassification"
"""What `tag` cannot do without: PyTorch and the model's class."""


def bench_command(
    report: Report, model: str, source: Path, runs: int, work: Path, environments: dict[str, Path]
) -> None:
    """Measure the whole command, checks included, against `optimum-cli`, in turn.

    Both find the libraries in memory: reading them from the disk is no part of it.
    """
    for environment, python in environments.items():
        whole([python, "-c", LIBRARIES])
        ours = [python.parent / "modelexport-optimum", source, *TASK, "--json", "-o"]
        theirs = [python, "-c", OPTIMUM, "export", "onnx", "-m", source, *TASK]
        taken: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(runs):
            for key, command in (("theirs", theirs), ("ours", ours)):
                output = work / "whole"
                shutil.rmtree(output, ignore_errors=True)
                os.sync()
                figures = whole([*command, output], work / "printed")
                printed = (work / "printed").read_text()
                found = json.loads(printed if key == "ours" else printed.splitlines()[-1])
                taken[key].append(figures | found["stages"])
        mid = {key: median(found) for key, found in taken.items()}
        name = f"{model}, {environment}"
        for figure, show, most in (
            ("CPU", seconds, 1.0),
            ("seconds", seconds, 1.0),
            ("memory", megabytes, 1.02),
        ):
            label = f"command / optimum-cli: {figure}"
            report.add(label, name, show, mid["ours"][figure], mid["theirs"][figure], most)
        for stage in ("import", "load", "export", "tag", "compare", "check"):
            one, two = (mid[key].get(stage, 0.0) for key in ("ours", "theirs"))
            report.add_without_bound(f"stage {stage}", name, seconds(one), seconds(two))


def bench_tag(report: Report, name: str, export: Path, runs: int, work: Path) -> None:
    """`tag DIR` as a whole process, against importing PyTorch and the model's class."""
    theirs, ours = [], []
    tag = [Path(sys.executable).parent / "modelexport-optimum", "tag", work / "tag"]
    for _ in range(runs):
        shutil.rmtree(work / "tag", ignore_errors=True)
        shutil.copytree(export, work / "tag")
        os.sync()
        theirs.append(whole([sys.executable, "-c", IMPORTS]))
        ours.append(whole(tag))
    one, two = median(ours), median(theirs)
    for figure in ("CPU", "seconds"):
        label = f"tag DIR / its imports: {figure}"
        report.add(label, name, seconds, one[figure], two[figure], 1.1)
