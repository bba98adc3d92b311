"""What the README shows and says, run: the demo on the real model, and the Python in it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forked_python import ForkedPython

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parent.parent
LEFT_BY_THE_DEMO = "demo/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, python_server: Path
) -> Iterator[tuple[Path, ForkedPython]]:
    """A directory where the demo runs, and its process."""
    place = tmp_path_factory.mktemp("demo")
    with (
        (place / "out").open("w") as out,
        (place / "err").open("w") as err,
        ForkedPython(
            python_server,
            [REPOSITORY / "scripts" / "demo.py"],
            cwd=place,
            stdout=out,
            stderr=err,
            env={**os.environ, "COLUMNS": "100"},
        ) as process,
    ):
        yield place, process


@pytest.fixture(scope="module")
def demo(running: tuple[Path, ForkedPython]) -> list[str]:
    """The lines that the demo showed."""
    place, process = running
    assert process.wait() == 0, (place / "err").read_text()
    return (place / "out").read_text().splitlines()


def python_in_the_readme() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    return block


def test_python_in_the_readme_runs(
    running: tuple[Path, ForkedPython],  # beside this test
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sample, tmp_path / LEFT_BY_THE_DEMO)
    exec(compile(python_in_the_readme(), "README.md", "exec"), {})
    first, *nodes, last = capsys.readouterr().out.splitlines()
    assert first.startswith("True ")
    assert len(nodes) > 400
    assert last.startswith("True ORTModelForFeatureExtraction")


def test_demo_leaves_what_the_readme_reads(
    demo: list[str], running: tuple[Path, ForkedPython], sample: Path
) -> None:
    assert f'"{LEFT_BY_THE_DEMO}"' in python_in_the_readme()
    left = {path.name for path in (running[0] / LEFT_BY_THE_DEMO).iterdir()}
    assert left == {path.name for path in sample.iterdir()}


def test_demo_shows_the_same_similarities(demo: list[str]) -> None:
    rows = [match for line in demo if (match := re.search(r"(-?0\.\d{4}) +(-?0\.\d{4})$", line))]
    pairs = [(float(row[1]), float(row[2])) for row in rows]
    assert len(pairs) == 4
    assert all(abs(by_torch - by_onnx) <= 0.0001 for by_torch, by_onnx in pairs)
    related, unrelated = pairs[:3], pairs[3]
    assert min(one for one, _ in related) > unrelated[0] + 0.2


def test_demo_shows_the_hierarchy(demo: list[str]) -> None:
    shown = "\n".join(demo)
    assert re.search(r"BertModel  \d{3} nodes", shown)
    assert re.search(r"── embeddings  BertEmbeddings  \d+", shown)
    assert len(re.findall(r"── layer\.\d  BertLayer  \d+", shown)) == 6


def test_demo_exports_a_model_that_passes(demo: list[str]) -> None:
    shown = "\n".join(demo)
    assert re.search(r"CPUExecutionProvider +ok +ORTModelForFeatureExtraction", shown)
    assert not re.search(r" failed ", shown)
