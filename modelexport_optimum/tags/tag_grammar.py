"""The form of a tag, written and parsed, and PyTorch's lists with the same content.

    tag = "/" RootClass *( "/" Class "." relpath )

This file knows only text; `carriers.py` stores it on a node.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


MAX_MODULES = 128
"""Maximum number of modules in a tag. Python ends a forward at about 300 nested modules: 1,000
frames, three for each call (torch/nn/modules/module.py). The limit keeps the cost of a hostile tag
near its length, because each of its modules has its own path."""

MAX_TAG_CHARACTERS = 16 * 1024

MAX_SCOPES_CHARACTERS = 128 * 1024

_CLASS = re.compile(r"[^\s./:]+")

QUALIFIED_CLASS = re.compile(r"(?:[^\s/:]*\.)?[^\s./:]+")

_OTHER = r"\\\x00-\x1f\x7f\ud800-\udfff"
"""What stands in no string as it is, besides the quote."""

_ESCAPE = (
    r"""\\(?:[\\'"nrt]|x[0-9a-f]{2}|u(?!d[89a-f])[0-9a-f]{4}"""
    r"""|U(?!0000d[89a-f])00(?:0[0-9a-f]|10)[0-9a-f]{4})"""
)
"""An escape that Python's `repr` writes, of a character of Unicode."""

_STRING = rf"""(?:'(?:[^'{_OTHER}]|{_ESCAPE})*'|"(?:[^"{_OTHER}]|{_ESCAPE})*")"""

_LIST = re.compile(rf"\[(?:{_STRING}(?:, {_STRING}){{0,{MAX_MODULES}}})?\]")

_PLAIN_LIST = re.compile(rf"\['[^'{_OTHER}]*'(?:, '[^'{_OTHER}]*'){{0,{MAX_MODULES}}}\]")
"""A list without escapes, as nearly all are: to split it takes a twentieth of the time."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One module on the way from the root to an operation.

    Attributes:
        path: Module path from the root, as `named_modules()` spells it; "" for the root.
        qualified: Class name with its Python module.
    """

    path: str
    qualified: str

    @property
    def module_class(self) -> str:
        """Class name."""
        return self.qualified.rpartition(".")[2]


Chain = tuple[Segment, ...]

Modules = tuple[tuple[str, str], ...]
"""(module path, class name) of each module, root first."""


def format_tag(chain: Chain) -> str:
    """Return the tag of a chain of modules, root first, each inside the one before it."""
    return tag_of([(segment.path, segment.module_class) for segment in chain])


def tag_of(modules: Sequence[tuple[str, str]]) -> str:
    """Return the tag of modules given as (path, class name), root first."""
    parts = ["/", modules[0][1]]
    for (outer, _), (path, name) in itertools.pairwise(modules):
        parts += ["/", name, ".", path[len(outer) + 1 :] if outer else path]
    return "".join(parts)


@functools.lru_cache(maxsize=1024)
def parse_tag(tag: str) -> Modules | None:
    """Read a tag: (module path, class name) of each module, root first; None if it is not a tag."""
    if not tag.startswith("/") or len(tag) > MAX_TAG_CHARACTERS or "\n" in tag:
        return None
    # A slash inside a module's name: what follows it has no class before a dot.
    parts: list[str] = []
    for part in tag[1:].split("/"):
        head, dot, relative = part.partition(".")
        if parts and not (dot and relative and _is_class(head)):
            if len(parts) == 1:
                return None
            parts[-1] += "/" + part
        else:
            parts.append(part)
    if not _is_class(parts[0]) or len(parts) > MAX_MODULES:
        return None
    modules = [("", parts[0])]
    for part in parts[1:]:
        name, _, relative = part.partition(".")
        outer = modules[-1][0]
        modules.append((f"{outer}.{relative}" if outer else relative, name))
    return tuple(modules)


def _is_class(text: str) -> bool:
    return _CLASS.fullmatch(text) is not None


def parse_texts(text: str) -> list[str] | None:
    r"""Read a list of strings in the form of PyTorch's exporter and of `encode`.

        list   = "[" [ string *( ", " string ) ] "]"
        string = "'" *character "'" / DQUOTE *character DQUOTE
        character: any but the quote, a backslash and ASCII's controls, or one of the escapes
            that Python's `repr` writes: \\ \' \" \n \r \t \xHH \uHHHH \UHHHHHHHH

    Returns:
        The strings, or None if it is not such a list, or longer than that of a tag.
    """
    if len(text) > MAX_SCOPES_CHARACTERS:
        return None
    if _PLAIN_LIST.fullmatch(text):
        return text[2:-2].split("', '")
    found: list[str] | None = ast.literal_eval(text) if _LIST.fullmatch(text) else None
    return found


def parse_scopes(scopes: str, classes: str) -> list[tuple[str, str]] | None:
    """Read name_scopes and class_hierarchy.

    Returns:
        (module path, qualified class) of each module, root first, without the node itself; None if
        the two are not such lists of equal length with a root.
    """
    paths = parse_texts(scopes)
    names = parse_texts(classes)
    if not paths or not names or len(paths) != len(names):
        return None
    found = list(zip(paths[:-1], names[:-1], strict=True))
    if any("\n" in path or not QUALIFIED_CLASS.fullmatch(name) for path, name in found):
        return None
    return found


def is_inside(path: str, outer: str) -> bool:
    """Return whether a module is another one or inside it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def outer_paths(path: str) -> Iterator[str]:
    """Yield the paths of all modules that contain a module or a parameter, innermost first."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def is_tag_of(modules: Modules, tag: str) -> bool:
    """Return whether a tag is that of a chain of modules, each inside the one before it."""
    if not modules or modules[0][0]:
        return False
    pairs = itertools.pairwise(path for path, _ in modules)
    nested = all(path != outer and is_inside(path, outer) for outer, path in pairs)
    return nested and tag_of(modules) == tag
