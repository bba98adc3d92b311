"""What becomes of a command whose stdout is gone, full, closed, or has another encoding."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from needs import POSIX

from modelexport_optimum import strip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = shlex.join([sys.executable, "-m", "modelexport_optimum"])
SIGPIPE = 128 + 13

pytestmark = POSIX


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; `{}` is the program."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('{}', PROGRAM)}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )


@pytest.fixture(scope="module")
def bert(tagged: Callable[[str], Path]) -> Path:
    return tagged("bert")


@pytest.mark.parametrize("command", ["inspect {bert}", "inspect {bert} --nodes --csv", "--help"])
def test_reader_that_is_gone(command: str, bert: Path) -> None:
    done = shell(f"{{}} {command.format(bert=bert)} | true")
    assert done.returncode == SIGPIPE
    assert done.stderr == ""


def test_diff_does_not_say_different_to_a_reader_that_is_gone(bert: Path) -> None:
    assert shell(f"{{}} diff {bert} {bert} | true").returncode == SIGPIPE


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
@pytest.mark.parametrize(("command", "status"), [("inspect {bert}", 1), ("diff {bert} {bert}", 2)])
def test_stdout_that_cannot_be_written(
    redirection: str, reason: str, command: str, status: int, bert: Path
) -> None:
    done = shell(f"{{}} {command.format(bert=bert)} {redirection}")
    assert done.returncode == status
    assert done.stderr == f"error: cannot write to stdout: {reason}\n"


def test_files_that_are_written_count_more_than_what_is_printed(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "bert")
    done = shell(f"{{}} strip {tmp_path / 'bert'} > /dev/full")
    assert done.returncode == 0
    last = done.stderr.splitlines()[-1]
    assert last == "warning: cannot write to stdout: No space left on device; the files are written"
    assert strip(tmp_path / "bert") == []


def test_other_encodings_are_drawn_in_ascii(bert: Path) -> None:
    utf8 = shell(f"{{}} inspect {bert}", PYTHONIOENCODING="utf-8").stdout
    latin = shell(f"{{}} inspect {bert}", PYTHONIOENCODING="latin-1", LC_ALL="C")
    assert latin.returncode == 0, latin.stderr
    assert "├─ " in utf8
    drawn = utf8.replace("├", "|").replace("└", "`").replace("│", "|").replace("─", "-")
    assert latin.stdout == drawn
