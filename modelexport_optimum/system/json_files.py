"""JSON from files of unknown authors: all of it is read here.

Python's own parser accepts JSON that parsers read differently: repeated keys, of which it keeps
only the last, and characters that cannot be encoded again. Deep nesting ends it with a
RecursionError.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read_json(path: Path) -> Any:  # noqa: ANN401 (what it says)
    """Return the content of a JSON file, None if it is missing or damaged."""
    try:
        return json.loads(read_file(path).decode())
    except (OSError, ValueError, RecursionError):
        return None


def json_entries(content: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (what it says)
    """Yield every key of every object in a document with its value, also in nested objects."""
    rest = [content]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield from value.items()
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def parse_json(data: str | bytes, *, doubles: bool = False, constants: bool = True) -> Any:  # noqa: ANN401 (what it says)
    """Read a JSON text.

    Args:
        data: The text; bytes are UTF-8, with or without a byte order mark.
        doubles: Whether an object may repeat a key; the last one counts.
        constants: Whether it may have NaN and Infinity, which Python writes, but JSON does not
            allow.

    Raises:
        ValueError: It is not JSON, is nested too deep, repeats a key in an object, or has a number
            of too many digits or a character that is not in Unicode. The message is one line.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        found = json.loads(
            text,
            object_pairs_hook=None if doubles else _without_doubles,
            parse_constant=None if constants else _no_constant,
        )
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise ValueError("half of a character is missing (a lone surrogate)") from error
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):  # Python's own advice
            raise ValueError("a whole number has too many digits") from None
        raise
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0][:100]} is given twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def parse_json_object(data: bytes, path: Path) -> dict[str, Any]:
    """Read a JSON text that must be one object, such as that of a config.json.

    It may repeat a key; the last one counts, as in the libraries that load the model.

    Raises:
        ModelExportError: It is not such a text.
    """
    try:
        found = parse_json(data, doubles=True)
    except ValueError as error:
        raise ModelExportError(f"cannot read {path}: {error}: repair it or remove it") from error
    if not isinstance(found, dict):
        raise ModelExportError(f"{path} is not a JSON object: repair it or remove it")
    return found
