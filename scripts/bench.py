"""Measure what the tool costs against what it stands beside, on this machine in this run.

Every figure is a ratio of medians, or memory above `import onnx`; those of batches are of one
run. Nothing is downloaded: the models have random weights, one as large as BERT base (438 MB),
one of 3 GB, whose weights the exporter writes as external data, and many tiny ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import zoo
from bench_command import TASK, bench_command, bench_tag
from bench_compare import bench_compare
from measure import BUILD, MODELS, Report, median, megabytes, per_second, python, seconds, whole
from wheel_test import plain_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

TINY = ("bert", "gpt2", "vit", "distilbert", "t5")
"""Of the zoo of the tests."""

PARTS = {
    "batch": "batches",
    "command": "the whole command and its stages, with all extras and without",
    "compare": "compare",
    "pass": "the pass, tag and inspect",
}
"""What may be measured alone, and what it is."""

# The pass alone, as it is inside an export: the module tree is there already, and so is filelock.
PASS = """
import pickle
import filelock, onnx
before = peak()
from modelexport_optimum.tagging import htp
tree = pickle.load(open(sys.argv[2], "rb"))
start = time.perf_counter()
htp.tag(sys.argv[1], model=tree)
print(json.dumps({"seconds": time.perf_counter() - start, "memory": peak() - before}))
"""

LOAD_AND_SAVE = """
import onnx
start = time.perf_counter()
model = onnx.load(sys.argv[1])
external = len(sys.argv) > 2
onnx.save(model, sys.argv[1], save_as_external_data=external, location="model.onnx_data")
print(json.dumps({"seconds": time.perf_counter() - start}))
"""

INSPECT = """
import onnx
before = peak()
start = time.perf_counter()
from modelexport_optimum.hierarchy.inspect import inspect
inspect(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - start, "memory": peak() - before}))
"""

# What replacing a file safely costs: copy it, flush the copy, and rename it over the old one.
REPLACE = 'cp "$1" "$1.tmp" && sync "$1.tmp" && mv "$1.tmp" "$1"'

BARE_APP = """
import typer
app = typer.Typer()
@app.command()
def main(name: str) -> None:
    print(name)
app()
"""


def evict(path: Path) -> None:
    """Take a file out of the page cache, as if nobody had read it lately."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_pass(report: Report, name: str, export: Path, tree: Path, runs: int, work: Path) -> None:
    """Measure the pass against a copy of the file, and against onnx.load and onnx.save."""
    copy = work / "copy"
    taken: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    external = (export / "model.onnx_data").exists()
    for _ in range(runs):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        if external:
            os.link(export / "model.onnx_data", copy / "model.onnx_data")
        os.sync()  # what an earlier run left to be written is not this one's
        taken["cp"].append(whole(["cp", export / "model.onnx", copy / "model.onnx"]))
        os.sync()
        taken["replace"].append(whole(["sh", "-c", REPLACE, "sh", copy / "model.onnx"]))
        os.sync()
        evict(copy / "model.onnx")
        taken["cold cp"].append(whole(["cp", copy / "model.onnx", copy / "model.cold"]))
        (copy / "model.cold").unlink()
        evict(copy / "model.onnx")
        taken["cold pass"].append(python(PASS, copy, tree))
        shutil.copy(export / "model.onnx", copy)
        os.sync()
        taken["pass"].append(python(PASS, copy, tree))
        taken["inspect"].append(python(INSPECT, copy))
        shutil.rmtree(copy)
        shutil.copytree(export, copy)
        os.sync()
        taken["load"].append(
            python(LOAD_AND_SAVE, copy / "model.onnx", *(["external"] if external else []))
        )
    mid = {key: median(all_runs) for key, all_runs in taken.items()}
    took = {key: figures["seconds"] for key, figures in mid.items()}
    if (export / "model.onnx").stat().st_size < 50 * 2**20:
        report.add("pass above cp", name, seconds, took["pass"] - took["cp"], 0.05, 1.0)
    else:
        report.add("pass / cp", name, seconds, took["pass"], took["cp"], 1.5)
        cold = took["cold pass"], took["cold cp"]
        report.add("pass / cp, not cached", name, seconds, *cold, 1.5)
        report.add("pass / cp, sync, mv", name, seconds, took["pass"], took["replace"], 1.3)
    report.add("pass / onnx.load + save", name, seconds, took["pass"], took["load"], 0.35)
    report.add("inspect / onnx.load + save", name, seconds, took["inspect"], took["load"], 0.35)
    report.add("pass: memory", name, megabytes, mid["pass"]["memory"], 32 * 2**20, 1.0)
    report.add("inspect: memory", name, megabytes, mid["inspect"]["memory"], 64 * 2**20, 1.0)


def bench_help(report: Report, runs: int, work: Path) -> None:
    """--help against that of a bare Typer app."""
    app = work / "app.py"
    app.write_text(BARE_APP)
    ours, bare = [], []
    for _ in range(2 * runs + 1):
        bare.append(whole([sys.executable, app, "--help"]))
        command = Path(sys.executable).parent / "modelexport-optimum"
        ours.append(whole([command, "--help"]))
    took = median(ours)["seconds"], median(bare)["seconds"]
    report.add("--help / bare Typer app", "", seconds, *took, 1.2)


def bench_batch(report: Report, work: Path) -> None:
    """Many tiny models: against a loop of optimum-cli, by the workers, and their memory."""
    rows = {row.name: row for row in zoo.ARCHITECTURES}
    tasks = {}
    for name in TINY:
        zoo.build(rows[name], work / name)
        tasks[name] = rows[name].task
    bin_directory = Path(sys.executable).parent
    manifest = work / "models.txt"

    def batch(count: int, workers: int) -> tuple[float, list[dict[str, Any]]]:
        names = [TINY[number % len(TINY)] for number in range(count)]
        lines = [f"{work / name} --task {tasks[name]} -o {n}" for n, name in enumerate(names)]
        manifest.write_text("\n".join(lines))
        output = work / "batch"
        shutil.rmtree(output, ignore_errors=True)
        program = [bin_directory / "modelexport-optimum", "batch", manifest, "-o", output]
        taken = whole([*program, "--workers", workers])["seconds"]
        lines = (output / "results.jsonl").read_text().splitlines()
        return taken, [json.loads(line) for line in lines]

    def throughput(records: Sequence[dict[str, Any]]) -> float:
        first = min(datetime.fromisoformat(record["started"]) for record in records)
        last = max(datetime.fromisoformat(record["finished"]) for record in records)
        return len(records) / (last - first).total_seconds()

    loop = 0.0
    for number in range(20):
        name = TINY[number % len(TINY)]
        command = [bin_directory / "optimum-cli", "export", "onnx", "-m", work / name]
        loop += whole([*command, "--task", tasks[name], work / "loop" / str(number)])["seconds"]
    ours = batch(20, 2)[0]
    report.add("batch / loop", "20 tiny", seconds, ours, loop, 0.05)
    one, two = batch(50, 1)[1], batch(50, 2)[1]
    speeds = throughput(one), throughput(two)
    report.add("one worker / two: throughput", "50 tiny", per_second, *speeds, 1 / 1.6)
    for records in (one, two):
        for worker in sorted({record["worker"] for record in records}):
            held = [record["memory"] for record in records if record["worker"] == worker]
            label = f"memory of {worker}: last / early"
            report.add(label, f"{len(held)} tiny", megabytes, held[-1], held[len(TINY)], 1.05)


def bench_models(report: Report, options: argparse.Namespace, parts: set[str], work: Path) -> None:
    """Measure the whole command in each environment, and the pass on the export of each model."""
    environments = {"all extras": Path(sys.executable)}
    if "command" in parts:
        bench_help(report, options.runs, work)
        if options.plain is None:
            print("installing the wheel without extras ...", file=sys.stderr)
        environments["plain"] = options.plain or plain_environment(work)
    for name in options.model or MODELS:
        runs = options.runs if name == "438 MB" else max(options.runs // 2, 1)
        source, export = work / "source", work / "export"
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(export, ignore_errors=True)
        print(f"measuring with the model of {name} ...", file=sys.stderr)
        python(BUILD, source, json.dumps(MODELS[name]))
        tree = work / "tree.pickle"
        (source / "tree.pickle").replace(tree)
        if "command" in parts:
            bench_command(report, name, source, runs, work, environments)
        if "pass" in parts:
            optimum = Path(sys.executable).parent / "optimum-cli"
            whole([optimum, "export", "onnx", "-m", source, *TASK, export])
            bench_pass(report, name, export, tree, runs, work)
            bench_tag(report, name, export, runs, work)


def main() -> None:
    """Measures, prints the table, and exits with 1 if a figure is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=5, help="runs of each, whose median counts; half with 3 GB"
    )
    parser.add_argument("--model", choices=MODELS, action="append", help="by default both")
    parser.add_argument("--plain", type=Path, help="Python where the wheel is, without extras")
    for part, what in PARTS.items():
        parser.add_argument(f"--{part}", action="store_true", help=f"{what}; none of them is all")
    options = parser.parse_args()
    parts = {part for part in PARTS if getattr(options, part)} or set(PARTS)
    # What is installed is compiled; a checkout is by its first run, unless this is set.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as directory:
        work = Path(directory)
        if "batch" in parts:
            print("exporting batches of tiny models ...", file=sys.stderr)
            bench_batch(report, work)
        if "compare" in parts:
            print("comparing ...", file=sys.stderr)
            bench_compare(report, options.runs, work)
        if parts & {"command", "pass"}:
            bench_models(report, options, parts, work)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    Console(width=120).print(report.table)
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
