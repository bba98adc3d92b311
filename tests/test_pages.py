"""Every command and snippet of docs/ and the README is run, or says why it is not."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from page_blocks import NAME, blocks, run_page
from typer.main import get_command

from modelexport_optimum.cli.main import app

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN_ELSEWHERE = {"README.md": "test_docs.py", "notebook.md": "test_notebook.py"}
RUNNABLE = ("console", "python")
WITH_BLOCKS = [
    page
    for page in PAGES
    if page.name not in RUN_ELSEWHERE
    and any(one.language in RUNNABLE and not one.is_left_out for one in blocks(page))
]


@pytest.fixture
def reader(minilm: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a reader who ran `make demo`."""
    shutil.copytree(minilm, tmp_path / "demo" / "all-MiniLM-L6-v2-onnx")
    (tmp_path / "demo" / "all-MiniLM-L6-v2").symlink_to(sample)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(page: Path) -> None:
    assert run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        if block.comment.startswith("<!-- not run"):
            assert block.is_left_out, block.comment
        elif block.language not in (*RUNNABLE, "text", "mermaid"):
            assert block.value("file"), f"nothing runs this {block.language}"


def indented_commands(page: Path) -> list[str]:
    """The commands that a page shows as an indented block: their names are placeholders."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(rf"^    ({NAME} [^\n]+)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_indented_commands_are_command_lines(page: Path) -> None:
    """They are read as such, and not run: the names in them are the reader's."""
    group = get_command(app)
    if page.name == "reference.md":
        return  # written from what is read here
    for command in indented_commands(page):
        words = shlex.split(re.split(r" {2,}|\[OPTIONS\]| >", command)[0])[1:]
        words = [re.sub(r"[\[\]]", "", word) for word in words if word not in ("...", "…")]
        if words[0] not in group.commands:
            words.insert(0, "export")
        known = {
            name for param in group.commands[words[0]].params for name in getattr(param, "opts", ())
        }
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert options <= known, command


def test_every_page_with_blocks_is_run() -> None:
    names = {page.name for page in WITH_BLOCKS} | set(RUN_ELSEWHERE)
    assert {"start.md", "batch.md", "compare.md", "hierarchy.md"} <= names
    assert all((REPOSITORY / "tests" / test).is_file() for test in RUN_ELSEWHERE.values())
