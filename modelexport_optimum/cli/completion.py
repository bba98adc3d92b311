"""Shell completion of option values: it takes at most a second, and never fails.

Typer calls these functions, and offers what begins with the text that was typed so far.
"""

# Annotations are no strings here: Typer reads them to know what to pass.

import contextlib
from pathlib import Path
from typing import Any

import typer

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.private_names import COMPLETION_SCRIPTS

_REGISTERS = "compdef %(complete_func)s %(prog_name)s"
_OFFERS_OR_REGISTERS = f"""if [[ $funcstack[1] == "_%(prog_name)s" ]]; then
  %(complete_func)s "$@"
else
  {_REGISTERS}
fi"""


def patch_zsh_script() -> None:
    """Make the script for zsh work at the first Tab of a shell, too.

    At the first Tab, zsh runs the script as the completion function; Typer's script then only
    registers another function.
    """
    with contextlib.suppress(ModelExportError):  # another version of Typer, whose script stays
        scripts = COMPLETION_SCRIPTS.get()
        if _OFFERS_OR_REGISTERS not in scripts["zsh"]:
            scripts["zsh"] = scripts["zsh"].replace(_REGISTERS, _OFFERS_OR_REGISTERS)


def complete_task() -> list[str]:
    """Return the tasks that Optimum knows."""
    from modelexport_optimum.exporting.tasks import TASKS, WITH_PAST

    return sorted(["auto", *TASKS, *(f"{task}-with-past" for task in WITH_PAST)])


def complete_provider() -> list[str]:
    """Return the short names of the execution providers of ONNX Runtime and of plugins."""
    from modelexport_optimum.providers.choice import known_provider_names

    return sorted(name.removesuffix("ExecutionProvider").lower() for name in known_provider_names())


def complete_viewer() -> list[str]:
    """Return the viewers of `view`."""
    return ["model-explorer", "netron"]


def complete_module(ctx: typer.Context) -> list[str]:
    """Return the module paths in the file or directory on the command line."""
    return [path for path, _ in _modules(ctx)]


def complete_class(ctx: typer.Context) -> list[str]:
    """Return the module classes in the file or directory on the command line."""
    return sorted({name for _, name in _modules(ctx)})


def complete_op(ctx: typer.Context) -> list[str]:
    """Return the operators in the file or directory on the command line."""
    return sorted({node.op_type for file in _files(ctx) for node in file.nodes})


def _modules(ctx: typer.Context) -> list[tuple[str, str]]:
    """Return path and class of each module but the root, in the order in which they ran."""
    modules = (module for file in _files(ctx) for module in file.modules.values())
    return list(dict.fromkeys((one.path, one.module_class) for one in modules if one.path))


def _files(ctx: typer.Context) -> list[Any]:
    """Return the tagged files of the command's DIR|FILE; none if they cannot be read."""
    # Click stops parsing at an option without a value, and leaves the arguments as they are.
    words = [ctx.params.get("path"), *ctx.args]
    path = next((Path(word) for word in words if word is not None and Path(word).exists()), None)
    if path is None:
        return []
    from modelexport_optimum.hierarchy.tagged_model import read_tagged
    from modelexport_optimum.onnx_file.find import onnx_files

    files = []
    with contextlib.suppress(ModelExportError, OSError):
        for file in onnx_files(path):
            files.append(read_tagged(file))
    return files
