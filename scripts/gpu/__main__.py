"""`make test-gpu`: profile and compare models on a GPU, and print a table.

    python scripts/gpu                         # CUDA and TensorRT, those that are there
    python scripts/gpu --provider cpu --small  # the same without a GPU, to try the script

Each model is exported as it is, in half precision, and with `--device cuda --optimize O4` (for
other providers: with `--optimize O3`). Without a GPU, and without `--provider`, it says so and
ends with status 0; with one that no provider can use, with status 1.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
from measure import Row, measure
from models import Model, models
from rich.console import Console
from rich.table import Table

from modelexport_optimum import export
from modelexport_optimum.errors import in_one_line
from modelexport_optimum.providers.listing import MISSING, list_providers

PROVIDERS = (
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
)

ON_GPU: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"dtype": "fp16", "device": "cuda"},
    "O4": {"optimize": "O4", "device": "cuda"},
}
ON_CPU: dict[str, dict[str, Any]] = {"fp32": {}, "O3": {"optimize": "O3"}}
"""How each model is exported."""

COLUMNS = (
    *("model", "export", "provider", "verify", "nodes on it", "ms per run", "ms, IO bound"),
    *("difference", "culprits", ""),
)


def cards() -> list[str]:
    """Return the GPUs that NVIDIA's driver lists, with its version."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def usable_providers() -> list[str]:
    """Return the providers of a GPU that this environment has; print what the others need."""
    found = {one.name: one for one in list_providers().providers}
    there = []
    for name in PROVIDERS:
        one = found.get(name)
        if one is not None and one.kind != MISSING and not one.problem:
            there.append(name)
        else:
            needs = one.problem if one is not None else "this ONNX Runtime does not know it"
            print(f"{name}: {needs}" + (f"; {one.install}" if one and one.install else ""))
    return there


def _exports(providers: list[str]) -> dict[str, dict[str, Any]]:
    asked = {name.lower().removesuffix("executionprovider") for name in providers}
    of_gpu = {name.lower().removesuffix("executionprovider") for name in PROVIDERS}
    return ON_GPU if asked & of_gpu else ON_CPU


def run_model(model: Model, given: argparse.Namespace, folder: Path) -> list[Row]:
    """Export a model in each way, and measure each export on each provider."""
    rows = []
    source = model.build(folder / "model")
    for name, options in _exports(given.provider).items():
        if "optimize" in options and not model.optimizes:
            continue
        output = folder / name
        library = {"library_name": model.library} if model.library else {}
        try:
            export(str(source), output, task=model.task, providers=["cpu"], **library, **options)
        except Exception as error:  # an exporter raises anything
            rows.append(Row(model.name, name, "", wrong=f"not exported: {in_one_line(error)}"))
            continue
        for provider in given.provider:
            print(f"{model.name}, {name}, {provider} ...", file=sys.stderr)
            rows.append(measure(Row(model.name, name, provider), output, given.iterations))
    return rows


def print_table(rows: list[Row]) -> None:
    """Print a line for each export on each provider."""
    table = Table(*COLUMNS, box=None)
    for row in rows:
        table.add_row(
            row.model,
            row.export,
            row.provider.removesuffix("ExecutionProvider"),
            row.verified,
            row.nodes,
            "" if row.run_ms is None else f"{row.run_ms:.3f}",
            "" if row.bound_ms is None else f"{row.bound_ms:.3f}",
            "" if row.difference is None else f"{row.difference:.1e}",
            "" if row.culprits is None else str(row.culprits),
            row.wrong,
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main() -> int:
    """Run it all; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--provider", action="append", help="by default those of a GPU")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--small", action="store_true", help="tiny models")
    parser.add_argument("--model", action="append", help="only these, by the start of their names")
    given = parser.parse_args()
    if not given.provider:
        found = cards()
        if not found:
            print("there is no GPU here that nvidia-smi lists: nothing is run")
            return 0
        print("\n".join(found))
        given.provider = usable_providers()
        if not given.provider:
            return 1
    print(f"onnxruntime {onnxruntime.__version__}, {', '.join(given.provider)}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    for model in models(small=given.small):
        if not given.model or model.name.lower().startswith(tuple(map(str.lower, given.model))):
            with tempfile.TemporaryDirectory() as folder:
                rows += run_model(model, given, Path(folder))
    print_table(rows)
    return int(any(row.wrong for row in rows) or not rows)


if __name__ == "__main__":
    sys.exit(main())
