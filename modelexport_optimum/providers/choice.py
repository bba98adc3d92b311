"""Execution providers for the names and options that a user gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.providers.plugins import built_in_providers, installed_plugins
from modelexport_optimum.system.files import expand_user
from modelexport_optimum.system.packages import require_packages

CPU = "CPUExecutionProvider"

_SUFFIX = "executionprovider"

Settings: TypeAlias = Mapping[str, str] | Sequence[str] | None
"""Texts by name: a mapping, or a list of `NAME=TEXT` as on the command line."""


@dataclass(frozen=True)
class Provider:
    """A requested execution provider. Nothing of it is loaded.

    Attributes:
        name: ONNX Runtime's name of it.
        available: Whether this ONNX Runtime, or an installed package, has it.
        library: The path of its library; None if it is built into ONNX Runtime.
        options: Its options.
        asked: Whether a user has named it; else it is one of the default ones.
    """

    name: str
    available: bool = True
    library: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    asked: bool = True


def choose_provider(name: str, *, options: Settings = None, libraries: Settings = None) -> Provider:
    """Return the execution provider of a name, which must be available.

    Raises:
        UsageError: There is no such provider, or an option is not `NAME=TEXT`.
    """
    (found,) = choose_providers([name], options=options, libraries=libraries)
    if found.available:
        return found

    there = [*built_in_providers(), *_plugin_names()]
    raise UsageError(
        f"this ONNX Runtime has no execution provider {name}: it has {', '.join(there)} "
        "(verify --list-providers says what the others need)"
    )


def choose_providers(
    names: Sequence[str],
    *,
    options: Settings = None,
    libraries: Settings = None,
    asked: bool = True,
) -> list[Provider]:
    """Return the execution providers of names, each once.

    Args:
        names: Full names or without `ExecutionProvider`, in any case.
        options: Options of the one provider among them that is not the CPU's.
        libraries: Paths of providers' libraries, by the providers' names.
        asked: Whether the user named them.

    Raises:
        UsageError: ONNX Runtime and the installed packages know no such provider, or options or
            libraries do not fit the providers.
        ModelExportError: ONNX Runtime is not installed.
    """
    require_packages("onnxruntime")
    given = settings_of(options, "--provider-option KEY=VALUE")
    paths = {
        name: _library(name, path)
        for name, path in settings_of(libraries, "--provider-library NAME=PATH").items()
    }
    named = (replace(_find(name, paths), asked=asked) for name in names)
    found = list({one.name: one for one in named}.values())
    unused = [name for name in paths if name not in {one.name for one in found}]
    if unused:
        raise UsageError(
            f"--provider-library {unused[0]}={paths[unused[0]]}: it is not used: give --provider "
            f"{unused[0]}"
        )
    return _with_options(found, given) if given else found


def settings_of(given: Settings, form: str) -> dict[str, str]:
    """Return texts by name, from a mapping or texts `NAME=TEXT`; errors name the form.

    Raises:
        UsageError: One is not of this form.
    """
    if isinstance(given, Mapping):
        return {str(name): str(value) for name, value in given.items()}
    found = {}
    for text in [given] if isinstance(given, str) else given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{form.split()[0]} {text}: give {form.split()[1]}")
        found[name] = value
    return found


def _with_options(found: list[Provider], options: Mapping[str, str]) -> list[Provider]:
    others = [one for one in found if one.name != CPU] or found
    if len(others) > 1 or not others[0].asked:
        names = ", ".join(one.name for one in others)
        raise UsageError(
            f"--provider-option is for one provider, but there are {names}: give one --provider "
            "besides cpu"
        )
    return [replace(one, options=dict(options)) if one is others[0] else one for one in found]


def _find(name: str, libraries: Mapping[str, str]) -> Provider:
    import onnxruntime as ort

    short = _short(name)
    for known, path in libraries.items():
        if _short(known) == short:
            return Provider(known, library=path)
    available = {_short(known): known for known in built_in_providers()}
    if short in available:
        return Provider(available[short])
    plugin = _plugin_of(short)
    if plugin is not None:
        return plugin
    known_names = {_short(known): known for known in ort.get_all_providers()}
    if short in known_names:
        return Provider(known_names[short], available=False)
    choices = sorted({*known_names, *map(_short, _plugin_names())})
    raise UsageError(
        f"provider {name!r} is not known to ONNX Runtime {ort.__version__}: "
        f"choose from {', '.join(choices)}, or give --provider-library NAME=PATH"
    )


def _short(name: str) -> str:
    return name.strip().lower().removesuffix(_SUFFIX)


def _plugin_of(short: str) -> Provider | None:
    """Return the provider of that name of an installed package.

    Raises:
        UsageError: The package of that provider does not work.
    """
    for plugin in installed_plugins():
        try:
            for name in plugin.names():
                if _short(name) == short:
                    return Provider(name, library=plugin.library())
        except ModelExportError as error:
            if plugin.package.replace("-", "").endswith(short):
                raise UsageError(str(error)) from error
    return None


def _plugin_names() -> list[str]:
    """Return the providers of the installed packages that work."""
    names: list[str] = []
    for plugin in installed_plugins():
        try:
            names += plugin.names()
        except ModelExportError:
            continue
    return names


def known_provider_names() -> list[str]:
    """Return the names of all providers that a user may request."""
    import onnxruntime as ort

    return list(dict.fromkeys([*ort.get_all_providers(), *_plugin_names()]))


def _library(name: str, path: str) -> str:
    file = Path(expand_user(path)).absolute()
    if not os.path.isfile(file):  # noqa: PTH113 (Path's raises for a name that is too long)
        raise UsageError(
            f"--provider-library {name}={path}: there is no such file: give the path of the "
            "provider's library"
        )
    return str(file)
