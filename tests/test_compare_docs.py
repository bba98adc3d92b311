"""The stories of docs/compare.md: their commands and Python run whole, and print what is shown."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from modelexport_optimum.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parent.parent / "docs" / "compare.md"

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]\d+)?(?![\w.]*[A-Za-z])")


def stories() -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each section with blocks to run."""
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        if "```python" in text:
            yield title, text


def ran(language: str, block: str) -> tuple[str, str]:
    """Run a block, and give what it printed and what the page says that it prints."""
    if language == "python":
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(block, PAGE.name, "exec"), {})
        return printed.getvalue(), ""
    command, _, shown = block.removeprefix("$ ").partition("\n")
    name, *arguments = shlex.split(command)
    assert name == "modelexport-optimum"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (0, 1), result.output  # 1: something differs
    return result.stdout, shown


def assert_alike(printed: str, shown: str) -> None:
    """Compare text, and numbers but for how a machine rounds.

    Errors below 1e-5 are rounding itself.
    """
    words = [re.sub(r"[ ]+", " ", NUMBER.sub("#", text)).strip() for text in (printed, shown)]
    assert words[0] == words[1]
    for one, other in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        small = max(float(one), float(other)) < 1e-5
        assert small or math.isclose(float(one), float(other), rel_tol=0.2), (one, other)


@pytest.mark.parametrize(("title", "text"), stories(), ids=[title for title, _ in stories()])
def test_a_story_prints_what_the_page_shows(
    title: str,
    text: str,
    minilm: Path,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(minilm, "demo/all-MiniLM-L6-v2-onnx")
    Path("demo/all-MiniLM-L6-v2").symlink_to(sample)
    waiting = ""
    for language, block in re.findall(r"```(console|python|text)\n(.*?)```", text, re.DOTALL):
        if language == "text":
            assert_alike(waiting, block)
            waiting = ""
            continue
        printed, shown = ran(language, block)
        if language == "console":
            assert_alike(printed, shown)
        else:
            waiting = printed
    assert not waiting, f"{title} does not show what its Python prints"
