"""Both fuzzers on a few cases, with a fixed seed. `make fuzz TIME=3600` runs them longer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz import corpus

if TYPE_CHECKING:
    from collections.abc import Callable

FUZZ = Path(__file__).with_name("fuzz")
CASES = 12


def test_damaged_files_end_in_success_or_one_error(
    exported: Callable[[str], Path], tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus.build(tmp_path)
    shutil.copytree(exported("bert"), tmp_path / "bert")
    shutil.copytree(tagged("bert"), tmp_path / "bert-tagged")
    done = subprocess.run(
        # A number of cases: what a time gives differs from machine to machine.
        [
            *(sys.executable, FUZZ, "--cases", str(CASES), "--seconds", "1200"),
            *("--seed", "2", "--corpus", tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    cases, verbs = re.findall(r"^(\d+) cases, (\d+) runs of a verb$", done.stdout, re.MULTILINE)[-1]
    assert int(cases) == CASES, done.stdout
    assert int(verbs) >= 3 * CASES, done.stdout
    guided = re.search(r"^atheris: ([\d,]+) inputs", done.stdout, re.MULTILINE)
    if guided is None:
        assert "atheris is not installed" in done.stdout
    else:
        assert int(guided[1].replace(",", "")) >= 40 * CASES, done.stdout
