"""Write docs/documents.md, what the documents of `--json` hold, from docs/schemas.

With `--check`, write nothing and fail if the file is out of date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from written_page import write_or_check

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parent.parent / "docs"
FILE = DOCS / "documents.md"

BEGIN = """# JSON documents

`make docs` writes this page from the [schemas](schemas/README.md). The page of the schemas explains
the names that all documents share. `files[]` is each item of a list, `{}` each value of an
object."""


def page() -> str:
    """Return the whole page."""
    parts = [BEGIN]
    for path in sorted((DOCS / "schemas").glob("*.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            f"| `{name}` | {text} | {kind} |" for name, kind, text in fields(schema, schema, "")
        ]
        parts += [
            f"\n## {schema['title']}\n",
            f"[{path.name}](schemas/{path.name})\n",
            "| field | meaning | type |\n|---|---|---|",
            *rows,
        ]
    return "\n".join(parts) + "\n"


def fields(part: Any, schema: Any, name: str) -> Iterator[tuple[str, str, str]]:  # noqa: ANN401
    """Yield name, type and description of each field, in the schema's order, with those inside."""
    part = resolved(part, schema)
    for key, value in part.get("properties", {}).items():
        whole = resolved(value, schema)
        inner = f"{name}.{key}" if name else key
        text = value.get("description", whole.get("description", "")).replace("|", "\\|")
        yield inner, kind(whole, schema), text
        yield from fields(whole, schema, inner)
    if "items" in part:
        yield from fields(part["items"], schema, f"{name}[]")
    if isinstance(part.get("additionalProperties"), dict):
        yield from fields(part["additionalProperties"], schema, f"{name}{{}}")
    for choice in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        yield from fields(choice, schema, name)


def resolved(part: Any, schema: Any) -> Any:  # noqa: ANN401
    """Return what a `$ref` stands for, beside what the part says itself."""
    reference = part.get("$ref")
    if reference is None:
        return part
    target = schema
    for key in reference.removeprefix("#/").split("/"):
        target = target[key]
    return {**resolved(target, schema), **{key: part[key] for key in part if key != "$ref"}}


def kind(part: Any, schema: Any) -> str:  # noqa: ANN401
    """Return the type of a value, in words."""
    part = resolved(part, schema)
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "enum" in part:
        return ", ".join(f"`{json.dumps(value)}`" for value in part["enum"])
    choices = (*part.get("anyOf", ()), *part.get("oneOf", ()))
    if choices:
        return " or ".join(dict.fromkeys(kind(choice, schema) for choice in choices))
    types = part.get("type", "anything")
    names = [types] if isinstance(types, str) else types
    if "array" in names and "items" in part:
        inside = kind(part["items"], schema)
        names = [f"array of {inside}" if name == "array" else name for name in names]
    return " or ".join(names)


if __name__ == "__main__":
    write_or_check(FILE, page(), "docs/schemas")
