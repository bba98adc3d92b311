"""`make fuzz`: both fuzzers for a time that is given, and what came out. Status 1 if they found."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import zoo  # noqa: E402 (of the tests)

from fuzz import corpus, whole_files  # noqa: E402

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


def main() -> int:
    """Fuzz."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--case", help="run this one case again: SEED:NUMBER")
    parser.add_argument("--without", nargs="*", default=[], choices=[*whole_files.VERBS])
    parser.add_argument("--small", action="store_true", help="without real exports")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as directory:
        models = corpus.build(Path(directory))
        if not given.small:
            models += exported(Path(directory))
        print(f"seed {given.seed}: {len(models)} directories", flush=True)
        if given.case:
            seed, _, number = given.case.partition(":")
            verbs = whole_files.chosen_verbs(given.without)
            result = whole_files.run_case(models, int(seed), int(number), verbs)
        else:
            result = whole_files.run(
                models,
                given.seed,
                given.seconds,
                without=given.without,
                log=lambda text: print(text, flush=True),
            )
    print(result.text())
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
