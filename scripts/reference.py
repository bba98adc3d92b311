"""Write docs/reference.md, the command line's reference, from what `--help` says.

With `--check`, write nothing and fail if the file is out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command
from written_page import write_or_check

from modelexport_optimum.cli.main import app

FILE = Path(__file__).parent.parent / "docs" / "reference.md"
PROGRAM = "modelexport-optimum"

EXIT_STATUS = (
    "| status | of all commands | of `batch` | of `diff` |",
    "|---|---|---|---|",
    "| 0 | success | every line is done | the two exports are the same |",
    "| 1 | the command failed; nothing was changed | a line failed or was skipped | they differ |",
    "| 2 | the command line is wrong; nothing was changed | the command line or the manifest is "
    "wrong | the command line is wrong, or they cannot be compared |",
    "| 3 | the files are written, but a check failed | all files are written, but a check "
    "failed | |",
    "| 4 | the files are written and the checks passed, but the upload to the Hub failed | all "
    "files are written, but an upload failed | |",
    "| 129, 130, 143 | stopped by SIGHUP, Ctrl-C or SIGTERM; a line says what was kept | | |",
    "| 141 | the program that reads stdout has ended, for example `head` | | |",
)
"""One table for all commands; the README and docs/batch.md refer to it."""


def reference() -> str:
    """Return the whole page."""
    group: Any = get_command(app)
    lines = [
        "# Command line",
        "",
        "`make docs` writes this page from the output of `--help`. "
        "In names of options, `-` and `_` mean the same.",
        "",
        "## Exit status",
        "",
        *EXIT_STATUS,
    ]
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = " ".join([PROGRAM, name, *(one.metavar for one in arguments), "[OPTIONS]"])
        lines += ["", f"## {name}", "", f"    {usage}", "", paragraph(command.help), ""]
        lines += [f"- `{one.metavar}`: {paragraph(one.help)}" for one in arguments]
        panels = {one.rich_help_panel: None for one in options if not one.hidden}
        for panel in panels:
            lines += ["", f"**{panel or 'Options'}**", ""]
            lines += [described(one) for one in options if one.rich_help_panel == panel]
    return "\n".join(lines) + "\n"


def described(option: Any) -> str:  # noqa: ANN401
    """Return one option as an item of a list."""
    names = ", ".join(f"`{name}`" for name in option.opts)
    default = option.default
    values = ", ".join(f"`{value}`" for value in choices(option))
    shown = f" One of {values}." if values else ""
    shown += "" if default in (None, False, "") else f" Default: `{default}`."
    return f"- {names}: {paragraph(option.help)}{shown}"


def choices(option: Any) -> list[str]:  # noqa: ANN401
    """Return the only values that an option takes, by its annotation; none if others do, too."""
    annotation = option.type_descriptor.annotation
    return [value for part in (annotation, *get_args(annotation)) for value in literals(part)]


def literals(annotation: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Return the values of a `Literal`, and nothing for what is none."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def paragraph(text: str | None) -> str:
    """Return a help text on one line."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    write_or_check(FILE, reference(), "--help")
