"""The documents of `--json`, and what describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parent.parent / "docs" / "schemas"


def valid(document: Any, schema: str) -> Any:
    """A document, which the schema of that name describes."""
    rules = json.loads((SCHEMAS / f"{schema}.json").read_text())
    jsonschema.Draft202012Validator(rules).validate(document)
    return document
