"""What the README shows and says, run: the demo on the real model, and the Python in it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from modelexport_optimum.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parent.parent
LEFT_BY_THE_DEMO = "demo/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A directory where the demo runs, and its process."""
    directory = tmp_path_factory.mktemp("demo")
    with subprocess.Popen(
        [sys.executable, REPOSITORY / "scripts" / "demo.py"],
        cwd=directory,
        env={**os.environ, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield directory, process
        process.kill()


@pytest.fixture(scope="module")
def demo(running: tuple[Path, subprocess.Popen]) -> list[str]:
    """The lines that the demo showed."""
    out, err = running[1].communicate()
    assert running[1].returncode == 0, err
    return out.splitlines()


def python_in_the_readme() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    return block


def test_python_in_the_readme_runs(
    running: tuple[Path, subprocess.Popen],  # beside this test
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
    demo: list[str], running: tuple[Path, subprocess.Popen], sample: Path
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


# --- docs/hierarchy.md ----------------------------------------------------------------------------

NOT_RUN = "<!-- not run by the tests"
OTHER_TIMES = "<!-- the times are others each time -->"


def shown_in_the_docs() -> Iterator[tuple[str, list[str], str]]:
    """Yield each command of docs/hierarchy.md, what it prints, and the comment before both."""
    text = (REPOSITORY / "docs" / "hierarchy.md").read_text()
    blocks = re.findall(r"(?:(<!-- [^\n]*)\n)?```(console|python)\n(.*?)```", text, re.DOTALL)
    for comment, language, block in blocks:
        if comment.startswith(NOT_RUN):
            continue
        if language == "python":
            yield f"python {block}", [], comment
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *printed = part.rstrip("\n").split("\n")
            yield command, printed, comment


def test_docs_of_the_hierarchy_show_what_is_printed(
    demo: list[str], running: tuple[Path, subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(running[0])
    ran = 0
    for command, printed, comment in shown_in_the_docs():
        name, *arguments = shlex.split(command) if not command.startswith("python ") else [command]
        if name.startswith("python "):
            exec(compile(command.removeprefix("python "), "hierarchy.md", "exec"), {})
        elif name != "modelexport-optimum":
            subprocess.run(["bash", "-c", command], check=True)
        else:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            lines = result.stdout.rstrip("\n").split("\n")
            if comment == OTHER_TIMES:
                assert tree_without_times(lines) == tree_without_times(printed)
            else:
                assert lines == printed, command
            ran += 1
    assert ran >= 6


def tree_without_times(lines: list[str]) -> list[str]:
    """The words above the list of what is slowest, sorted: the slower module comes first."""
    end = next(number for number, line in enumerate(lines) if line.startswith("slowest by"))
    return sorted(" ".join(re.findall(r"[A-Za-z]\w*", line)) for line in lines[:end])
