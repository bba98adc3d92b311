"""Which tests pytest-xdist runs in one process: the hooks of conftest.py, in a run of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

TESTS = """\
import pytest

@pytest.mark.parametrize("row", ["one", "two", "three"])
def test_first(row):
    pass

@pytest.mark.parametrize("row", ["one", "two", "three"])
def test_second(row):
    pass
"""


def test_a_file_stays_in_one_process_and_of_the_zoo_each_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("test_json.py", "test_zoo.py", "test_streams.py"):
        (tmp_path / name).write_text(TESTS)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    plugins = ["-p", "conftest", "-p", "no:hypothesispytest"]  # which takes seconds to start
    command = [sys.executable, "-m", "pytest", "-n", "2", "-v", *plugins, "."]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    processes = defaultdict(set)
    for process, file, row in re.findall(r"\[(gw\d)\].* PASSED (.*)::.*\[(.*)\]", ran.stdout):
        processes[f"{file} {row}" if file == "test_zoo.py" else file].add(process)
    assert {group: len(found) for group, found in processes.items()} == {
        "test_json.py": 1,
        "test_streams.py": 1,
        "test_zoo.py one": 1,
        "test_zoo.py two": 1,
        "test_zoo.py three": 1,
    }, ran.stdout + ran.stderr
    assert set.union(*processes.values()) == {"gw0", "gw1"}
