"""What the README shows and says, run: the demo on the real model, and the Python in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A directory where the demo was run, and the lines it showed."""
    directory = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "demo.py"],
        cwd=directory,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory, done.stdout.splitlines()


def test_demo_shows_the_same_similarities(demo: tuple[Path, list[str]]) -> None:
    rows = [match for line in demo[1] if (match := re.search(r"(-?0\.\d{4}) +(-?0\.\d{4})$", line))]
    pairs = [(float(row[1]), float(row[2])) for row in rows]
    assert len(pairs) == 4
    assert all(abs(by_torch - by_onnx) <= 0.0001 for by_torch, by_onnx in pairs)
    related, unrelated = pairs[:3], pairs[3]
    assert min(one for one, _ in related) > unrelated[0] + 0.2


def test_demo_shows_the_hierarchy(demo: tuple[Path, list[str]]) -> None:
    shown = "\n".join(demo[1])
    assert re.search(r"BertModel  \d{3} nodes", shown)
    assert re.search(r"── embeddings  BertEmbeddings  \d+", shown)
    assert len(re.findall(r"── layer\.\d  BertLayer  \d+", shown)) == 6


def test_demo_exports_a_model_that_passes(demo: tuple[Path, list[str]]) -> None:
    shown = "\n".join(demo[1])
    assert re.search(r"CPUExecutionProvider +ok +ORTModelForFeatureExtraction", shown)
    assert not re.search(r" failed ", shown)


def test_python_in_the_readme_runs(
    demo: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(demo[0])
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    first, *nodes, last = capsys.readouterr().out.splitlines()
    assert first.startswith("True ")
    assert len(nodes) > 400
    assert last.startswith("True ORTModelForFeatureExtraction")
