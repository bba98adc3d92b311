"""The check of the dimensions: config.json and the graphs have the same shapes and modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.errors import first_line
from modelexport_optimum.system.text import listed
from modelexport_optimum.verifying.described_model import compared_shapes, described_models
from modelexport_optimum.verifying.shown_modules import missing_modules, read_tags, unknown_modules

if TYPE_CHECKING:
    from modelexport_optimum.verifying.exported_files import Exported

NAMED = 5
"""Maximum number of modules named: the first ones show which layer is too many."""


def check_dimensions(exported: Exported) -> tuple[str, str]:
    """Check that the graphs have the modules and the parameters that config.json describes."""
    if exported.library == "timm":
        return "unavailable", "models of timm are not built from their config.json"
    named = {found.model_class.__name__ for found in exported.classes}
    declared = set(exported.settings.get("architectures") or ())
    if "auto_map" in exported.settings and not named & declared:
        return "unavailable", "the model is custom code, which is not here or not allowed to run"
    try:
        described = described_models(exported)
    except Exception as error:  # the model's class may raise anything about its configuration
        what = f"the model that config.json describes cannot be built: {first_line(error)}"
        return "unavailable" if isinstance(error, ImportError) else "failed", what
    problems = []
    agreeing = 0
    for file, pairs in compared_shapes(exported, described).items():
        for pair in pairs:
            if pair.described == pair.carried:
                agreeing += 1
            else:
                problems.append(
                    f"{pair.name} is {list(pair.described)} by config.json, "
                    f"{list(pair.carried)} in {file}"
                )
    if problems:
        return "failed", first_of(problems)
    tags_of = {file: read_tags(model) for file, model in exported.models.items()}
    unknown = unknown_modules(exported, described, tags_of)
    if unknown:
        return (
            "failed",
            f"the graphs have modules that config.json does not describe: {listed(unknown, NAMED)}",
        )
    missing = missing_modules(exported, described, tags_of)
    if missing:
        some = listed(missing, NAMED)
        return "failed", f"config.json describes modules that no graph shows: {some}"
    if not agreeing:
        return "unavailable", "the graphs carry no parameter under its own name"
    return "ok", f"{agreeing:,} parameters"


def first_of(problems: list[str]) -> str:
    """Return the first problem, and the number of others."""
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
