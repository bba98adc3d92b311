"""docs/troubleshooting.md has every message of an error: the messages are read from the code.

A message is what an error is raised with, each part that is filled in spelled `…`. A new one, or
one that is worded anew, fails here until the page has it.
"""

from __future__ import annotations

import ast
import itertools
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "modelexport_optimum"
PAGE = REPOSITORY / "docs" / "troubleshooting.md"

FILLED_IN = "…"
ALSO_SHOWN = {"BadParameter", "TypeError", "ValueError", "fail"}
"""What is raised about a value or a line, and is shown with the option or the line's number."""
LISTING = "listed"
"""The function that lists names, `a, b and 3 more`: no message of its own."""
UNFORESEEN = "…: … (unexpected: please report it with --verbose)"
"""How `errors.in_one_line` shows what no error of ours is."""


@cache
def trees() -> tuple[ast.Module, ...]:
    return tuple(
        ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    )


@cache
def functions() -> tuple[ast.FunctionDef, ...]:
    return tuple(
        node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    )


def error_classes() -> set[str]:
    """The names of ModelExportError and of all that is derived from it."""
    classes = [
        node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    found = {"ModelExportError"}
    while True:
        more = {one.name for one in classes if {_name(base) for base in one.bases} & found} - found
        if not more:
            return found
        found |= more


def _name(node: ast.AST) -> str:
    """The last part of what is called or derived from."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def messages() -> set[str]:
    """Every message in the code, with `…` for what is filled in."""
    raised = error_classes() | ALSO_SHOWN
    found: set[str] = set()
    for function in functions():
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and _name(node.func) in raised:
                for argument in node.args:
                    found.update(_texts(argument, function))
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and made(node.exc):
                # `raise _refusal(file, module, f"it runs {runs} times")`
                for argument in node.exc.args:
                    if isinstance(argument, ast.JoinedStr):
                        found.update(_texts(argument, function))
    texts = map(_shortened, found)
    return {text for text in texts if " " in text and re.search(r"[a-z]{2}", text)}


def made(error: ast.Call) -> bool:
    """Whether a function of ours makes the error."""
    return _name(error.func) in {function.name for function in functions()}


def _texts(node: ast.expr, function: ast.FunctionDef) -> Iterator[str]:
    """Yield what an argument may be: its text, that of its variable, or what a function gives."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else FILLED_IN for part in node.values
        )
        for part in node.values:  # `{in_words(code)}` is a text of its own
            if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Call):
                yield from _texts(part.value, function)
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.IfExp):
        parts = {
            ast.BinOp: lambda: (node.left, node.right),
            ast.BoolOp: lambda: node.values,
            ast.IfExp: lambda: (node.body, node.orelse),
        }[type(node)]()
        texts = [list(_texts(part, function)) for part in parts]
        if isinstance(node, ast.BinOp):
            yield from map("".join, itertools.product(*(each or [FILLED_IN] for each in texts)))
        else:
            yield from (text for each in texts for text in each)
    elif isinstance(node, ast.Name):
        for other in ast.walk(function):
            if isinstance(other, ast.Assign) and node.id in map(_name, other.targets):
                yield from _texts(other.value, function)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        for other in functions():
            if other.name == node.func.id != LISTING:
                for back in ast.walk(other):
                    if isinstance(back, ast.Return) and back.value is not None:
                        yield from _texts(back.value, other)


def _shortened(text: str) -> str:
    """The text on one line; what is filled in twice in a row counts once."""
    return re.sub(r"(…\s?)+…", FILLED_IN, " ".join(text.split()))


def told() -> list[str]:
    """The messages of the page: all that is code in the first line of an item."""
    page = PAGE.read_text(encoding="utf-8")
    lines = re.findall(r"^- (`.*`)\n\n    ", page, flags=re.MULTILINE)
    return [
        span[1].strip()
        for line in lines
        for span in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", line)
    ]


def test_every_message_has_its_place_on_the_page() -> None:
    missing = messages() - set(told())
    assert not missing, f"{PAGE.name} lacks:\n" + "\n".join(sorted(missing))


def test_the_page_has_no_message_that_is_not_in_the_code() -> None:
    known = messages() | {UNFORESEEN}
    assert [message for message in told() if message not in known] == []
    assert len(told()) == len(set(told()))
