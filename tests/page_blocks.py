"""The blocks of a page of the docs, run in their order as a reader would, and what they print.

A comment in the line above a block says what is special:

    <!-- not run by the tests: REASON -->   what cannot run here, or is run by another test
    <!-- file: NAME -->                     the block is written to this file
    <!-- needs: PROGRAM ... -->             it is run where these programs are installed
    <!-- if: COMMAND -->                    it is run where this command succeeds, too
    <!-- the times are others each time --> words are compared, numbers are not
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from modelexport_optimum.cli.main import app

NAME = "modelexport-optimum"
NOT_RUN = re.compile(r"<!-- not run by the tests.*?: \S.*-->")
OTHER_TIMES = "<!-- the times are others each time -->"
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]\d+)?(?![\w.]*[A-Za-z])")
TIME = re.compile(r"\d+\.\d+ s\b")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the comment in the line above."""

    language: str
    text: str
    comment: str

    @property
    def is_left_out(self) -> bool:
        """Whether the tests do not run it, and why is said."""
        return NOT_RUN.fullmatch(self.comment) is not None

    def value(self, key: str) -> str:
        """What the comment says after `key:`."""
        found = re.search(rf"<!-- {key}: (.*?) -->", self.comment)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(
        r"(?:^(<!--[^\n]*-->)\n)?^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
    )
    return [Block(language, block, comment) for comment, language, block in found]


def run_page(page: Path) -> int:
    """Run the blocks of a page in the current directory, and compare what they print.

    Returns:
        How many were run.
    """
    count = 0
    printed = ""
    for block in blocks(page):
        if block.is_left_out:
            continue
        if missing := missing_for(block):
            warnings.warn(f"{page.name}: a block was not run, it needs {missing}", stacklevel=2)
            continue
        if file := block.value("file"):
            Path(file).write_text(block.text)
        elif block.language == "python":
            printed = run_python(block.text, page.name)
        elif block.language == "console":
            for command, shown in commands(block.text):
                printed = run_command(command)
                if shown:
                    assert_alike(printed, shown, times=block.comment != OTHER_TIMES)
        elif block.language == "text":
            assert_alike(printed, block.text)
        else:
            continue
        count += 1
    return count


def missing_for(block: Block) -> str:
    """What a block needs that this machine lacks: a program, or that a command succeeds."""
    missing = [name for name in block.value("needs").split() if shutil.which(name) is None]
    asked = block.value("if")
    if not missing and asked and subprocess.run(shlex.split(asked), capture_output=True).returncode:
        return asked
    return " and ".join(missing)


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console, each with what it prints; a here-document belongs to its own."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        here = re.search(r"<<'(\w+)'\n.*?^\1\n", part, re.DOTALL | re.MULTILINE)
        end = here.end() if here else part.index("\n") + 1
        found.append((part[:end].rstrip("\n"), part[end:]))
    return found


def run_python(text: str, name: str) -> str:
    """Run a block of Python, and give what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, name, "exec"), {"__name__": name})
    return printed.getvalue()


def run_command(command: str) -> str:
    """Run a command, the product's own in this process, and give what it printed.

    Of a command that ends in `; echo "exit status $?"` that is compared as well; any other must
    succeed.
    """
    command, asked, _ = command.partition('; echo "exit status $?"')
    words = shlex.split(command, comments=True)
    if words[0] == "cd":
        os.chdir(words[1])
        return ""
    if words[0] != NAME or "<<" in command:
        path = f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; '
        return subprocess.run(
            ["bash", "-ec", path + command], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
    result = CliRunner().invoke(app, words[1:])
    assert asked or result.exit_code == 0, f"{command}\n{result.output}\n{result.stderr}"
    if target is not None:
        Path(target).write_text(result.stdout)
        return ""
    return result.stdout + (f"exit status {result.exit_code}\n" if asked else "")


def assert_alike(printed: str, shown: str, *, times: bool = True) -> None:
    """Compare words exactly, whole numbers too, and figures but for how a machine rounds.

    Args:
        printed: By what ran.
        shown: On the page.
        times: Whether lines and numbers are stable; otherwise the lines' words are compared,
            in any order.
    """
    printed, shown = (TIME.sub("# s", text).strip() for text in (printed, shown))
    if not times:
        ours, theirs = line_words(printed), line_words(shown)
        # A page may show the progress before it, which is on stderr.
        assert sorted(ours) == sorted(theirs[-len(ours) :]), shown
        return
    assert plain(printed) == plain(shown)
    for ours, theirs in zip(printed.splitlines(), shown.splitlines(), strict=True):
        measured = re.search(r"\de[-+]\d", theirs) is not None
        for one, other in zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True):
            if one.isdecimal() and not measured:
                assert one == other, shown
            # Errors below 1e-5 are rounding itself.
            small = max(float(one), float(other)) < 1e-5
            assert small or math.isclose(float(one), float(other), rel_tol=0.2), (ours, theirs)


def plain(text: str) -> str:
    """The words of a text, without numbers and columns."""
    return re.sub(r" +", " ", NUMBER.sub("#", text))


def line_words(text: str) -> list[str]:
    """The words of each line, without numbers; without the list of what is slowest."""
    lines = text.partition("slowest by")[0].strip().splitlines()
    words = (re.findall(r"[A-Za-z][\w./-]*", line) for line in lines)
    return [" ".join(word for word in line if word not in ("kB", "MB")) for line in words]
