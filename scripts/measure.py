"""What the benches share: the models, processes that are measured, and the table."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MODELS = {
    "438 MB": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "3 GB": {"hidden_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 16},
}

BEGINNING = """
import json, resource, sys, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
"""
"""What the code of every process that is measured begins with."""

BUILD = """
import pickle
import torch
from transformers import BertConfig, BertForSequenceClassification
from modelexport_optimum.module_trees.module_tree import ModuleTree
directory, options = sys.argv[1], json.loads(sys.argv[2])
options["intermediate_size"] = 4 * options["hidden_size"]
with torch.no_grad():
    model = BertForSequenceClassification(BertConfig(**options))
model.save_pretrained(directory)
tree = ModuleTree.from_module(model)
tree.build = type(None)  # gives no model: a reference to one cannot be pickled
with open(directory + "/tree.pickle", "wb") as file:
    pickle.dump(tree, file)
"""


def python(code: str, *arguments: object) -> dict[str, float]:
    """Run code in a process of its own and read the figures that it prints."""
    command = [sys.executable, "-c", BEGINNING + code, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1]) if output else {}


def whole(command: Sequence[object], output: Path | None = None) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory in bytes of a command as a whole process.

    Args:
        command: The command.
        output: The file for what it prints to stdout, if that is wanted.
    """
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        printed = log if output is None else stack.enter_context(output.open("wb"))
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=printed, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            raise SystemExit(f"{command} failed:\n{log.read().decode()[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "CPU": cpu, "memory": usage.ru_maxrss * 1024}


def median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}


class Report:
    """The table."""

    def __init__(self) -> None:
        self.table = Table("what", "model", "measured", "against", "ratio", "at most", "")
        self.failed = False

    def add(
        self,
        what: str,
        model: str,
        show: Callable[[float], str],
        ours: float,
        theirs: float,
        most: float,
    ) -> None:
        """Add a row; a ratio above its bound fails the bench.

        Args:
            what: What is measured.
            model: With which model.
            show: Writes a figure with its unit.
            ours: The figure that is measured.
            theirs: The one that it is measured against.
            most: The bound of their ratio.
        """
        good = ours / theirs <= most
        self.failed |= not good
        mark = "[green]ok" if good else "[red]above"
        figures = show(ours), show(theirs), f"{ours / theirs:.2f}", f"{most:.2f}"
        self.table.add_row(what, model, *figures, mark)

    def add_without_bound(self, what: str, model: str, ours: str, theirs: str) -> None:
        """Add a row that is only shown."""
        self.table.add_row(what, model, ours, theirs)


def seconds(value: float) -> str:
    """For the table."""
    return f"{value:.2f} s"


def megabytes(value: float) -> str:
    """For the table."""
    return f"{value / 2**20:.0f} MB"


def per_second(value: float) -> str:
    """For the table."""
    return f"{value:.2f} a second"
