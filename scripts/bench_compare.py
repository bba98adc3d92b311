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
import json, resource, sys, time
import numpy, onnxruntime
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
what, source, export, tokens = *sys.argv[1:4], int(sys.argv[4])
from modelexport_optimum.compare_run import compare
import modelexport_optimum.hierarchy.compare
ids = numpy.ones((1, tokens), numpy.int64)
if source:
    import optimum.exporters.onnx.model_configs, torch
    from transformers import AutoModelForSequenceClassification
before, start = peak(), time.perf_counter()
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
print(json.dumps({"seconds": time.perf_counter() - start, "memory": peak() - before}))
"""


def bench_compare(report: Report, runs: int, work: Path) -> None:
    """Measure a comparison against loading and running each side, and how it grows with layers."""
    models = {f"{layers} layers": {**NARROW, "num_hidden_layers": layers} for layers in (25, 100)}
    grown = {}
    for name, config in {"438 MB": MODELS["438 MB"], **models}.items():
        source, export = work / "source", work / "export"
        for directory in (source, export):
            shutil.rmtree(directory, ignore_errors=True)
        python(BUILD, source, json.dumps(config))
        (source / "tree.pickle").unlink()
        program = [Path(sys.executable).parent / "modelexport-optimum", source, "-o", export]
        whole([*program, "--task", "text-classification"])
        for with_torch in (True, False) if name == "438 MB" else (False,):
            sides = source if with_torch else "", export, 128
            plain = median(runs, lambda sides=sides: python(COMPARE, "plain", *sides))
            ours = median(runs, lambda sides=sides: python(COMPARE, "compare", *sides))
            grown[name] = ours["seconds"]
            label = f"compare {'PyTorch' if with_torch else 'two exports'} / load, run"
            times = ours["seconds"], plain["seconds"]
            report.add(label, name, *map(seconds, times), times[0] / times[1], 10)
            if name == "438 MB":
                held = ours["memory"], plain["memory"]
                report.add(f"{label}: memory", name, *map(megabytes, held), held[0] / held[1], 2)
    few, many = (4 * grown["25 layers"], grown["100 layers"])
    report.add(
        "compare: 100 layers / 4 x 25", "narrow", seconds(many), seconds(few), many / few, 1.5
    )
