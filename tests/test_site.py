"""What zensical does not look at when it builds the site: files that pages show, and the order.

`make site` builds it, and fails if a page, a heading or a Python name that is linked is missing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")  # mypy brings it

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
AT_GITHUB = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]


def links(page: Path) -> Iterator[str]:
    """Yield what a page links or shows beside it, without the heading."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        path = "".join(target).partition("#")[0]
        if path and not re.match(r"[a-z]+:", path):
            yield path


@pytest.mark.parametrize("page", [*AT_GITHUB, *PAGES], ids=lambda page: page.name)
def test_what_a_page_links_is_there(page: Path) -> None:
    for target in links(page):
        file = (page.parent / target).resolve()
        assert file.exists(), f"{page} links {target}"
        if page in PAGES:
            assert file.is_relative_to(DOCS), f"{target} is no part of the site"


def in_order(items: list[Any]) -> Iterator[str]:
    for item in items:
        for value in item.values():
            if isinstance(value, str):
                yield value
            else:
                yield from in_order(value)


def test_every_page_has_one_place_in_the_navigation() -> None:
    config = tomllib.loads((REPOSITORY / "zensical.toml").read_text(encoding="utf-8"))
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES]
    assert sorted(in_order(config["project"]["nav"])) == pages


def test_the_versions_are_those_that_are_tested_with() -> None:
    page = (DOCS / "versions.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", page, flags=re.MULTILINE))
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)", pins, flags=re.MULTILINE))
    assert len(told) > 9
    assert told.items() <= tested.items()
