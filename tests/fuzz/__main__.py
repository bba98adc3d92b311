"""`make fuzz`: both fuzzers for a time that is given, and what came out. Status 1 if they found."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import zoo  # noqa: E402 (of the tests)

from fuzz import corpus, edits, whole_files  # noqa: E402

INPUTS_PER_CASE = 40
"""Of atheris, where the number of cases is limited: its files are small, and are not run."""

# One that reads text, one whose graph holds others, one that sees: their exports take seconds.
ARCHITECTURES = ("bert", "t5", "resnet")


def exported(directory: Path) -> list[Path]:
    """Real exports, tagged and untagged."""
    from modelexport_optimum import export, strip

    made = []
    for row in zoo.ARCHITECTURES:
        if row.name in ARCHITECTURES:
            source = directory / f"source-{row.name}"
            zoo.build(row, source)
            plain = directory / row.name
            export(source, plain, task=row.task, **row.arguments(source))
            strip(plain)
            made += corpus.with_tags(plain)
    return made


def coverage_guided(
    models: list[Path], seconds: float, seed: int, cases: int, keep: Path | None
) -> str:
    """Runs atheris in a process of its own; returns what came out, with the findings."""
    with tempfile.TemporaryDirectory(prefix="fuzz-atheris-") as directory:
        folder = Path(directory)
        for number, model in enumerate(sorted(f for m in models for f in m.rglob("*.onnx"))):
            if model.stat().st_size < 100_000:
                shutil.copyfile(model, folder / f"file-{number}")
        for number, text in enumerate(edits.TEXTS):
            (folder / f"text-{number}").write_bytes(edits.TEXT_INPUT + text)
        inputs = INPUTS_PER_CASE * cases or -1
        limits = [str(int(seconds)), str(seed), str(inputs)]
        done = subprocess.run(
            [sys.executable, "-m", "fuzz.coverage", directory, *limits],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        found = [path.read_text() for path in sorted(folder.glob("found-*.txt"))]
        for path in folder.glob("found-*"):
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, keep / path.name)
        others = [path.name for path in folder.glob("found-*") if "." not in path.name]
        if not runs or (others and not found):
            found.append(f"atheris ended with {done.returncode}: {done.stderr[-3000:]}")
        count = int(runs[1]) if runs else 0
        return "\n".join([f"atheris: {count:,} inputs", *(f"FOUND {text}" for text in found)])


def main() -> int:
    """Fuzz."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of both fuzzers together")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--cases", type=int, default=0, help="end after this many damaged files")
    parser.add_argument("--case", help="run this one case again: SEED:NUMBER")
    parser.add_argument("--without", nargs="*", default=[], choices=[*whole_files.VERBS])
    parser.add_argument("--corpus", type=Path, help="keep the corpus here, and take it from here")
    parser.add_argument("--found", type=Path, help="keep inputs of atheris's findings here")
    parser.add_argument("--small", action="store_true", help="a corpus without real exports")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as directory:
        kept = given.corpus or Path(directory)
        if given.corpus is None or not kept.is_dir():
            corpus.build(kept)
            if not given.small:
                exported(kept)
        models = sorted(path.parent for path in kept.glob("*/*.onnx"))
        models = list(dict.fromkeys(models))
        print(f"seed {given.seed}: {len(models)} directories", flush=True)
        if given.case:
            seed, _, number = given.case.partition(":")
            verbs = whole_files.chosen_verbs(given.without)
            result = whole_files.run_case(models, int(seed), int(number), verbs)
            print(result.text())
            return 1 if result.findings else 0
        guided = ""
        part = given.seconds
        if importlib.util.find_spec("atheris") is None:
            print("atheris is not installed (the extra fuzz): random edits alone")
        else:
            part /= 2
            guided = coverage_guided(models, part, given.seed, given.cases, given.found)
            print(guided, flush=True)
        result = whole_files.run(
            models,
            given.seed,
            part,
            cases=given.cases,
            without=given.without,
            log=lambda text: print(text, flush=True),
        )
    print(f"{result.text()}\n{guided}")
    return 1 if result.findings or "FOUND" in guided else 0


if __name__ == "__main__":
    sys.exit(main())
