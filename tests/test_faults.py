"""A part of `make faults`, and what a killed run leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelexport_optimum.system.atomic_write import remove_abandoned, replacing


@pytest.mark.skipif(
    not (shutil.which("strace") and hasattr(os, "fork")), reason="no strace, or no fork"
)
def test_system_calls_that_fail_and_runs_that_are_killed() -> None:
    """The 30th part of the faults, the same ones each time."""
    script = Path(__file__).parent.parent / "scripts" / "faults.py"
    command = [sys.executable, str(script), "--every", "30", "--kills", "3"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if "strace cannot trace here" in run.stderr:
        pytest.skip(run.stderr)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.search(r"(\d+) calls that failed, (\d+) kills at a call, 6 kills", run.stdout)
    assert found is not None, run.stdout
    assert int(found[1]) >= 20
    assert int(found[2]) >= 3


def test_without_strace_it_is_said() -> None:
    script = Path(__file__).parent.parent / "scripts" / "faults.py"
    environment = {**os.environ, "PATH": ""}
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 2
    assert "strace is not installed" in run.stdout


def test_temporary_file_is_removed_if_no_live_run_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    left = tmp_path / ".model.onnx.0123abcd.tmp"
    left.write_bytes(b"left")
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    link = tmp_path / ".model.onnx.0123abce.tmp"
    link.symlink_to("nowhere")
    other = tmp_path / ".model.onnx.txt.tmp"  # no name of ours
    other.touch()
    with replacing(path) as target:
        assert not left.exists()
        [live] = set(tmp_path.glob(".model.onnx.*.tmp")) - {link, other}
        remove_abandoned(tmp_path, lambda _: True)
        assert live.exists()
        os.write(target, b"new")
    assert path.read_bytes() == b"new"
    assert {each.name for each in tmp_path.iterdir()} == {
        "model.onnx", "elsewhere", link.name, other.name
    }  # fmt: skip
