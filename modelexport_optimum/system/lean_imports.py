"""Imports of libraries without the optional packages that they import whenever these are installed.

transformers imports scikit-learn and SciPy for three functions, and Optimum's exporter imports
diffusers for pipelines. Both check at the top of their modules whether the package is installed;
here the check returns False. The missing names of a module are added when they are needed.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, first_line
from modelexport_optimum.system.packages import tested
from modelexport_optimum.system.private_names import (
    DIFFUSERS_AVAILABLE,
    SCIPY_AVAILABLE,
    SKLEARN_AVAILABLE,
    TASKS_OF_DIFFUSERS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from modelexport_optimum.system.private_names import PrivateName

EXPORTER = "optimum.exporters.onnx.__main__"
"""Optimum's exporter, all of it."""

EXPORT_CONFIGS = "optimum.exporters.onnx.model_configs"
"""Optimum's configurations of the architectures that it exports, without the exporter."""

_FUNCTIONS_OF = {"sklearn": SKLEARN_AVAILABLE, "scipy": SCIPY_AVAILABLE}
"""The libraries from which transformers imports single functions."""

_LEFT_OUT = {**_FUNCTIONS_OF, "diffusers": DIFFUSERS_AVAILABLE}
"""The libraries that are left out."""

_without_diffusers: list[ModuleType] = []
"""The modules of Optimum that were imported without it."""

_frozen_for_good = False


def import_lean(module: str) -> None:
    """Import a module that imports transformers and Optimum, without optional libraries.

    The garbage collector is off meanwhile: the import makes half a million objects that all stay,
    and the collector would scan them again and again.

    Raises:
        ModelExportError: Optimum cannot be imported with the installed packages.
    """
    if module in sys.modules:
        return
    before = set(sys.modules)
    with _collector_disabled():
        with contextlib.ExitStack() as stack:
            missing = {
                library
                for library, available in _LEFT_OUT.items()
                if library not in before and stack.enter_context(_reported_as_missing(available))
            }
            _import(module)
        for name in sys.modules.keys() - before:
            new = sys.modules[name]
            if name.startswith("optimum.") and "diffusers" in missing:
                _without_diffusers.append(new)
            elif name.startswith("transformers."):
                for library in missing & _FUNCTIONS_OF.keys():
                    _import_when_called(new, library)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        versions = "optimum-onnx", "optimum", "transformers", "torch"
        raise ModelExportError(
            f"Optimum does not work with the installed packages ({first_line(error)}): "
            f"{tested(*versions)}"
        ) from error


def import_diffusers() -> None:
    """Import diffusers, if it is installed, into the modules of Optimum that left it out."""
    if not _without_diffusers:
        return
    for module in _without_diffusers:
        for statement in _conditional_statements(module, "diffusers"):
            _run(statement, module)
    _without_diffusers.clear()
    tasks: Any = importlib.import_module(TASKS_OF_DIFFUSERS.module)
    TASKS_OF_DIFFUSERS.put(tasks.get_diffusers_tasks_to_model_mapping())


def freeze_collector_for_good() -> None:
    """Exclude all current objects from garbage collection, in this process and its forks."""
    global _frozen_for_good
    gc.freeze()
    _frozen_for_good = True


@contextlib.contextmanager
def collector_frozen() -> Iterator[None]:
    """Exclude the objects that exist at the start of the block from garbage collection."""
    # To count what is frozen is to walk through all of it.
    spared = gc.isenabled() and not _frozen_for_good and not gc.get_freeze_count()
    if spared:
        gc.freeze()
    try:
        yield
    finally:
        if spared:
            gc.unfreeze()


@contextlib.contextmanager
def _collector_disabled() -> Iterator[None]:
    """Disable garbage collection in the block, and exclude the objects that exist at its end.

    When it is enabled again, the collector would at once scan all new objects. `freeze` and
    `unfreeze` move them to the oldest generation, as if it had done so.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


@contextlib.contextmanager
def _reported_as_missing(available: PrivateName) -> Iterator[bool]:
    """Make a library report another as missing in the block; yield whether it is installed.

    A version that checks in another way imports the other library, which takes longer but is not an
    error.
    """
    try:
        known = bool(available.get())
    except ModelExportError:
        yield False
        return
    with available.replaced(False):
        yield known


def _conditional_statements(module: ModuleType, library: str) -> list[ast.If]:
    """Return the top-level statements of a module that run only if a library is installed."""
    question = f"is_{library}_"
    if not any(name.startswith(question) for name in vars(module)):
        return []
    return [
        statement
        for statement in ast.parse(inspect.getsource(module)).body
        if isinstance(statement, ast.If) and question in ast.unparse(statement.test)
    ]


def _run(statement: ast.stmt, module: ModuleType) -> None:
    """Run a statement of a module's source in the module."""
    exec(compile(ast.Module([statement], []), str(module.__file__), "exec"), vars(module))


def _import_when_called(module: ModuleType, library: str) -> None:
    """Add a library's missing functions to a module; their first call imports them."""
    for statement in _conditional_statements(module, library):
        imports = [inner for inner in statement.body if isinstance(inner, ast.ImportFrom)]
        if len(imports) == len(statement.body):
            for alias in (alias for one in imports for alias in one.names):
                name = alias.asname or alias.name
                vars(module).setdefault(name, _stand_in(module, name, statement))
        else:
            _run(statement, module)


def _stand_in(module: ModuleType, name: str, statement: ast.stmt) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        _run(statement, module)
        return vars(module)[name](*args, **kwargs)

    return call
