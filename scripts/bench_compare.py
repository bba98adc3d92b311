"""Measure what a comparison costs against loading and running each side once."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from measure import BUILD, MODELS, Report, median, megabytes, python, seconds, whole

NARROW = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 500}
"""One with many layers, of which each is small."""

# Both sides once, and the comparison of them. Imports are no part of it.
COMPARE = """
import numpy, onnxruntime
what, source, export, tokens = *sys.argv[1:4], int(sys.argv[4])
from modelexport_optimum.compare_run import compare
import modelexport_optimum.comparing.compare
ids = numpy.ones((1, tokens), numpy.int64)
if source:
    import optimum.exporters.onnx.model_configs, torch
    from transformers import AutoModelForSequenceClassification
before, start, cpu = peak(), time.perf_counter(), time.process_time()
if what == "plain":
    if source:
        model = AutoModelForSequenceClassification.from_pretrained(source).eval()
        with torch.no_grad():
            model(input_ids=torch.from_numpy(ids))
    session = onnxruntime.InferenceSession(export + "/model.onnx")
    session.run(None, {value.name: ids for value in session.get_inputs()})
else:
    sides = (export, None) if source else (export, export)
    compare(*sides, model=source or None, batch_size=1, sequence_length=tokens)
found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
print(json.dumps({**found, "memory": peak() - before}))
"""


def bench_compare(report: Report, runs: int, work: Path) -> None:
    """Measure a comparison against loading and running each side once, and how it grows."""
    source, export = work / "source", work / "export"
    name = "438 MB"
    exported(MODELS[name], source, export)
    for what, model in (("PyTorch", source), ("two exports", "")):
        sides = model, export, 128
        plain = median([python(COMPARE, "plain", *sides) for _ in range(runs)])
        ours = median([python(COMPARE, "compare", *sides) for _ in range(runs)])
        label = f"compare {what} / load, run"
        for figure, show, most in (("seconds", seconds, 10), ("memory", megabytes, 2)):
            report.add(f"{label}: {figure}", name, show, ours[figure], plain[figure], most)
    taken = []
    for layers in (25, 100):
        exported({**NARROW, "num_hidden_layers": layers}, source, export)
        found = median([python(COMPARE, "compare", "", export, 128) for _ in range(runs)])
        taken.append(found["cpu"])
    label = "compare 100 layers / 4 x 25, CPU time"
    report.add(label, "narrow", seconds, taken[1], 4 * taken[0], 1.25)


def exported(config: dict[str, int], source: Path, export: Path) -> None:
    """Build a model with random weights, and export it."""
    for directory in (source, export):
        shutil.rmtree(directory, ignore_errors=True)
    python(BUILD, source, json.dumps(config))
    (source / "tree.pickle").unlink()
    program = [Path(sys.executable).parent / "modelexport-optimum", source, "-o", export]
    whole([*program, "--task", "text-classification"])
