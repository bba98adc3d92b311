"""The program's own `--help`: the commands in groups, the first ones to use on top, options last.

Typer shows the options of a program before its commands, and has no setting for the order.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRST = "Start with these"
"""The heading of the three commands for the first use: export, inspect, report."""

EXPORTS = "Export many models, and check exports"
VIEWS = "Look at an export"


def print_options(options: "Iterable[Any]") -> None:
    """Print the program's own options as Typer prints those of a command."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text
    from typer import rich_utils as style

    table = Table.grid(padding=style.STYLE_OPTIONS_TABLE_PADDING, expand=True)
    for option in options:
        if not option.hidden:
            names = sorted(option.opts, key=lambda name: (not name.startswith("--"), name))
            flags = Text(", ".join(names), style=style.STYLE_OPTION)
            table.add_row(flags, Text(option.help or ""))
    console = Console(
        color_system=style.COLOR_SYSTEM, force_terminal=style.FORCE_TERMINAL, width=style.MAX_WIDTH
    )
    panel = Panel(
        table,
        title=style.OPTIONS_PANEL_TITLE,
        title_align=style.ALIGN_OPTIONS_PANEL,
        border_style=style.STYLE_OPTIONS_PANEL_BORDER,
    )
    console.print(panel)
