"""The Typer classes of the program: the default command, and hints for mistyped words.

Typer does the parsing. The classes here add three things: a first word that is not a command is a
model for `export`; the error for a mistyped command or option suggests the right one; and `--help`
shows a flag without a type.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from modelexport_optimum.cli.completion import patch_zsh_script
from modelexport_optimum.cli.help_page import print_options
from modelexport_optimum.errors import did_you_mean
from modelexport_optimum.exporting.options import normalized

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = {
    "help_option_names": ["--help", "-h"],
    "token_normalize_func": normalized,
}
"""Settings of the command line, the same for all commands."""

_LIKE_A_COMMAND = 0.75
"""Minimum similarity (difflib's ratio) of a mistyped command; otherwise a word is a model's name.
`verfy` and `verify` have 0.91; `opt` and `export`, `bart` and `batch` 0.67."""


class _FlagsHaveNoType:
    """Shows `--overwrite` as such in `--help`, and not as `--overwrite <bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 (Typer's own)
        """Return the parameters, `--help` included."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
        return params


class Command(_FlagsHaveNoType, TyperCommand):
    """A command of the program."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse the arguments; refuse an empty path, for example from an unset variable."""
        given = [*args]
        rest = super().parse_args(ctx, args)
        if any(arg == "" or arg.endswith("=") for arg in given) and not ctx.resilient_parsing:
            texts, _, _ = self.make_parser(ctx).parse_args(given)
            for param in self.get_params(ctx):
                text, value = texts.get(param.name), ctx.params.get(param.name)
                if "" in _listed(text) and any(isinstance(one, Path) for one in _listed(value)):
                    flags = [name for name in param.opts if name.startswith("-")]
                    ctx.fail(f"{flags[0] if flags else param.metavar} is empty: give a path")
        return rest


def _listed(value: Any) -> list[Any]:  # noqa: ANN401
    """Return the values of a parameter as a list."""
    return value if isinstance(value, list) else [value]


class BatchCommand(Command):
    """`--ray` has an optional value, an address, which Typer does not support."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse the arguments, `--ray` without an address as `--ray=`."""
        end = args.index("--") if "--" in args else len(args)
        given = [
            "--ray=" if arg == "--ray" and not _is_address(after) else arg
            for arg, after in zip(args[:end], [*args[1:end], ""], strict=False)
        ]
        return super().parse_args(ctx, given + args[end:])


def _is_address(text: str) -> bool:
    return text in ("auto", "local") or (":" in text and not text.startswith("-"))


class Commands(_FlagsHaveNoType, TyperGroup):
    """The program. A first word that is not a command is an argument of `export`."""

    _given: "list[str]" = []  # noqa: RUF012 (replaced, never changed)
    _without_options = False

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 (Typer's own)
        """Return the program's own options; none while its commands alone are shown."""
        return [] if self._without_options else super().get_params(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (Typer's own)
        """Print the commands, and the options after them; without rich, as Typer orders them."""
        if self.rich_markup_mode is None:
            super().format_help(ctx, formatter)
            return
        options = self.get_params(ctx)
        self._without_options = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._without_options = False
        print_options(options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse the arguments, with `export` added before a word that is not a command."""
        self._given = list(args)
        if args and args[0] in ("--install-completion", "--show-completion"):
            patch_zsh_script()
        own = [name for option in self.get_params(ctx) for name in option.opts]
        if args and args[0] not in self.commands and args[0] not in own:
            if not ctx.resilient_parsing:  # it is not being completed
                with self._explained():
                    self._check_word(ctx, args[0])
            args = ["export", *args]
        return super().parse_args(ctx, args)

    def _check_word(self, ctx: Any, word: str) -> None:  # noqa: ANN401
        """Refuse a mistyped command; a model of that name can be given to `export`."""
        if word.startswith("-") or "/" in word or os.path.exists(word):  # noqa: PTH110 (a long one)
            return
        meant = did_you_mean(word, self.commands, most=2, cutoff=_LIKE_A_COMMAND)
        if meant:
            ctx.fail(
                f"There is no command {word}{meant} To export a model of this name: "
                f"`modelexport-optimum export {word}`."
            )

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the named command."""
        with self._explained():
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _explained(self) -> "Iterator[None]":
        """Add hints to the error of a wrong command line in the block."""
        try:
            yield
        except Exception as error:
            if hasattr(error, "format_message") and getattr(error, "exit_code", None) == 2:
                self._explain(error)
            raise

    def _explain(self, error: Any) -> None:  # noqa: ANN401
        """Add to the error of a wrong command line what was meant; also as JSON if requested."""
        context = getattr(error, "ctx", None)
        error.message = error.message.removeprefix("Value error, ")  # pydantic's words
        if hasattr(error, "possibilities") and context is not None:
            name = next(
                (
                    word.partition("=")[0]
                    for word in self._given
                    if normalized(word.partition("=")[0]) == normalized(error.option_name)
                ),
                error.option_name,
            )
            known = [
                flag
                for param in context.command.get_params(context)
                if not getattr(param, "hidden", False)
                for flag in param.opts
                if flag.startswith("-")
            ]
            error.possibilities = None
            error.message = f"No such option: {name}{did_you_mean(name, known, most=1)}"
        elif (
            "unexpected extra argument" in error.message
            and context is not None
            and context.command.name in ("export", "batch")
        ):
            error.message += ": the output is given with -o"
        if "--json" in self._given:
            document = {"ok": False, "error": error.format_message(), "exit_status": 2}
            typer.echo(json.dumps(document, indent=2))
