"""Plugins: execution providers in separate packages, and the loading of their libraries.

Such a package has a function that returns the path of its library, and the names of its providers.
The packages on PyPI have either `get_library_path()` and `get_ep_names()` (onnxruntime-ep-webgpu,
onnxruntime-ep-openvino) or `library_path()` and `EP_NAME` (onnxruntime-ggml). Whether a package has
them is read from its source; the package is imported only when its provider is requested.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, first_line, onnxruntime_line

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIBRARY_FUNCTIONS = ("get_library_path", "library_path")
_NAME_FUNCTIONS = ("get_ep_names", "get_ep_name")
_NAME_CONSTANT = "EP_NAME"

_PREFIX = "onnxruntime-ep-"
"""The prefix of packages that are plugins, whatever the names of their providers."""

_loaded: dict[str, set[str]] = {}
"""The names of the providers of each loaded library, by its path."""


@dataclass(frozen=True)
class Plugin:
    """An installed package with a provider, and its module to import."""

    package: str
    version: str
    module: str

    def names(self) -> tuple[str, ...]:
        """Return the names of its providers.

        Raises:
            ModelExportError: It cannot be imported.
        """
        module = self._imported()
        for name in _NAME_FUNCTIONS:
            function = getattr(module, name, None)
            if function is not None:
                found = function()
                return (found,) if isinstance(found, str) else tuple(found)
        constant = getattr(module, _NAME_CONSTANT, None)
        if isinstance(constant, str):
            return (constant,)
        return (_normalized(self.package).removeprefix(_PREFIX).removeprefix("onnxruntime-"),)

    def library(self) -> str:
        """Return the path of its library.

        Raises:
            ModelExportError: It has no library for this machine, or cannot be imported.
        """
        module = self._imported()
        function = next(
            found
            for name in _LIBRARY_FUNCTIONS
            if (found := getattr(module, name, None)) is not None
        )
        try:
            return str(function())
        except Exception as error:  # a package may raise anything
            raise self._broken(error) from error

    def _imported(self) -> Any:  # noqa: ANN401
        try:
            return importlib.import_module(self.module)
        except Exception as error:  # a package may raise anything
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ModelExportError:
        return ModelExportError(
            f"the package {self.package} {self.version} does not work here "
            f"({first_line(error)}): install it again, or a version for this machine"
        )


def installed_plugins() -> tuple[Plugin, ...]:
    """Return the packages of providers in this environment, by name. None of them is imported."""
    return _plugins_on(tuple(sys.path))


@functools.lru_cache(maxsize=1)
def _plugins_on(_path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Return the packages on an import path. Reading it takes 0.2 s with 170 packages."""
    found: dict[str, Plugin] = {}
    for distribution in metadata.distributions():
        name = _normalized(distribution.metadata["Name"] or "")
        if not name.startswith("onnxruntime-"):
            continue
        for module in _modules(distribution, name):
            if module not in found and _is_plugin(module, name):
                found[module] = Plugin(name, distribution.version, module)
    return tuple(sorted(found.values(), key=lambda plugin: plugin.package))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _modules(distribution: metadata.Distribution, name: str) -> Iterable[str]:
    """Return the packages of a distribution; by its name, if it does not list them."""
    files = distribution.files or ()
    roots = [path.parts[0] for path in files if path.parts[1:] == ("__init__.py",)]
    return roots or [name.replace("-", "_")]


def _is_plugin(module: str, package: str) -> bool:
    """Return whether a package has a provider, read from its source; onnxruntime has none."""
    if module == "onnxruntime":
        return False
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin or "").read_bytes()) if spec is not None else None
    except (ImportError, OSError, SyntaxError, ValueError):
        return False
    if tree is None:
        return False
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    targets = [
        target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
    ]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    names = functions | {target.id for target in targets if isinstance(target, ast.Name)}
    is_named = package.startswith(_PREFIX) or not names.isdisjoint(
        (*_NAME_FUNCTIONS, _NAME_CONSTANT)
    )
    return is_named and not functions.isdisjoint(_LIBRARY_FUNCTIONS)


def built_in_providers() -> list[str]:
    """Return the providers that are part of this ONNX Runtime.

    Once a library is loaded, ONNX Runtime offers its providers, too.
    """
    import onnxruntime as ort

    of_libraries = {name for names in _loaded.values() for name in names}
    return [name for name in ort.get_available_providers() if name not in of_libraries]


def devices_of(name: str, library: str) -> list[Any]:
    """Load a library, once in a process, and return the devices of its provider.

    Raises:
        ModelExportError: This ONNX Runtime cannot load plugins, the library cannot be loaded or has
            no such provider, or it has no device on this machine.
    """
    import onnxruntime as ort

    if not hasattr(ort, "register_execution_provider_library"):
        raise ModelExportError(
            f"onnxruntime {ort.__version__} cannot load plugin providers: install onnxruntime 1.23 "
            "or newer"
        )
    if library not in _loaded:
        before = {device.ep_name for device in ort.get_ep_devices()}
        try:
            ort.register_execution_provider_library(name, library)
        except Exception as error:
            raise ModelExportError(
                f"ONNX Runtime {ort.__version__} cannot load {library}, the library of {name}: "
                f"{onnxruntime_line(error)}"
            ) from error
        _loaded[library] = {device.ep_name for device in ort.get_ep_devices()} - before
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if devices:
        return devices
    others = sorted(_loaded[library])
    if others:
        raise ModelExportError(
            f"{library} has the provider {', '.join(others)}, not {name}: give "
            f"--provider {others[0]} --provider-library {others[0]}={library}"
        )
    raise ModelExportError(f"{name} ({library}) has no device on this machine that it can use")
