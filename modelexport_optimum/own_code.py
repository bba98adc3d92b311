"""Code that comes with a model: seen before anything is loaded, and kept from running.

Whoever wrote a model's files chose the names in them, and what loads the model imports some of
these: classes of transformers (`auto_map`), modules of sentence-transformers (`modules.json`),
components of diffusers (`model_index.json`). Some loaders ask whether the code is trusted only
when it comes from the Hub, and some not at all.

`find_own_code` reads from JSON and file names alone what would run. `own_code_refused` is the guard
for all that it could have missed: while it is on, Python executes no file of the model's directory
or of the caches that such code is copied to, and PyTorch unpickles weights only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import threading
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, causes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SHOWN = 3
"""How many names a message lists."""

_ADVICE = "read it, then add --trust-remote-code"


@dataclass(frozen=True, slots=True)
class OwnCode:
    """A name in a model's files that stands for code of its own.

    Attributes:
        file: the file that has the name, below the model's directory.
        name: what would be imported.
        needed: whether the model cannot be loaded without it. Otherwise the loader asks whether
            it is trusted, and has a class of its own or fails.
    """

    file: str
    name: str
    needed: bool

    def __str__(self) -> str:
        """The name and its file, as a message has them."""
        return f"{self.name if self.name.isprintable() else repr(self.name)} in {self.file}"


def in_words(found: Sequence[OwnCode]) -> str:
    """One line: what did not run, and how to let it."""
    names = list(dict.fromkeys(map(str, found)))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"code of its own, which was not run ({', '.join(names[:_SHOWN])}{more}): {_ADVICE}"


def refuse_needed(name: str, found: Sequence[OwnCode]) -> None:
    """Refuses a model that cannot be loaded without its code.

    Args:
        name: The model, as the user gave it.
        found: What `find_own_code` found.

    Raises:
        ModelExportError: Some of it is needed.
    """
    needed = [one for one in found if one.needed]
    if needed:
        raise ModelExportError(f"model {name} has {in_words(needed)}")


def pickled_code(error: BaseException) -> str | None:
    """Says what a checkpoint holds besides weights, if it is that which could not be loaded.

    Args:
        error: What the library raised; PyTorch's own error is among its causes.
    """
    for cause in causes(error):
        text = str(cause)
        if "Weights only load failed" in text:
            named = re.search(r"GLOBAL (\S+)", text)
            what = f" ({named[1]})" if named else ""
            return (
                f"a checkpoint that is a pickle with more than weights{what}, which was not run: "
                "save it as safetensors where it is from"
            )
    return None


# --- What would run -------------------------------------------------------------------------------

_CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "generation_config.json",
    "adapter_config.json",
)
"""Where transformers looks for `auto_map`, which names classes in `.py` files of the model."""

_CUSTOM_GENERATE = "custom_generate/generate.py"
"""What transformers puts in the place of a model's `generate` (GenerationMixin)."""

_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Keys of a configuration whose value may be `owner/name`: a kernel to fetch from the Hub."""

_MEGATRON = "megatron_core"
"""Key of an adapter's configuration that peft imports as a module (tuners/lora/tp_layer.py)."""

_MODULES = re.compile(r"sentence_transformers\.(\w+\.)*(models|modules)\.\w+(\.\w+)*")
"""The modules that sentence-transformers has itself; its functions and losses are none."""

_OWN_CLASSES = ("sentence_transformers.", "torch.nn.")
"""What else it imports by a name from a file and is no code of the model's."""

_PIPELINE_LIBRARIES = ("diffusers", "transformers", "optimum", "onnxruntime")
"""The packages that a pipeline's components are classes of."""


def find_own_code(directory: Path, library: str | None = None) -> list[OwnCode]:
    """Finds what would run if the model were loaded; loads and imports nothing.

    Args:
        directory: The model's.
        library: Optimum's name of the library that will load it; by default any that could.

    Raises:
        ModelExportError: A file sends its library out of the directory.
    """
    found = list(_named_in_configs(directory, ""))
    if library in (None, "sentence_transformers"):
        found += _named_in_modules(directory)
    if library in (None, "diffusers"):
        found += _named_in_pipeline(directory)
    return list(dict.fromkeys(found))


def _read(path: Path) -> Any:  # noqa: ANN401 (any JSON)
    """A file's content, None where there is none: that it is damaged its library will say."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _entries(content: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (any JSON)
    """Every key of every object with its value, nested ones included."""
    rest = [content]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield from value.items()
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def _texts(content: Any) -> Iterator[str]:  # noqa: ANN401 (any JSON)
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)


def _named_in_configs(directory: Path, folder: str) -> Iterator[OwnCode]:
    for name in _CONFIGS:
        file = os.path.join(folder, name)  # noqa: PTH118 (a name to show, not yet a path)
        for key, value in _entries(_read(directory / file)):
            if key == "auto_map":
                yield from (OwnCode(file, reference, needed=False) for reference in _texts(value))
            elif key in _ATTENTION:
                kernels = (text for text in _texts(value) if "/" in text)
                yield from (OwnCode(file, kernel, needed=True) for kernel in kernels)
            elif key == _MEGATRON and isinstance(value, str) and value != "megatron.core":
                yield OwnCode(file, value, needed=True)
    custom = os.path.join(folder, _CUSTOM_GENERATE)  # noqa: PTH118
    if (directory / custom).is_file():
        yield OwnCode(custom, "generate", needed=False)


def _named_in_modules(directory: Path) -> Iterator[OwnCode]:
    modules = _read(directory / "modules.json")
    for module in modules if isinstance(modules, list) else ():
        if not isinstance(module, dict):
            continue
        name = module.get("type")
        if isinstance(name, str) and not _MODULES.fullmatch(name):
            yield OwnCode("modules.json", name, needed=True)
        folder = module.get("path", "")
        if isinstance(folder, str):
            _check_inside(directory, folder, "modules.json")
            yield from _named_in_module(directory, folder)


def _named_in_module(directory: Path, folder: str) -> Iterator[OwnCode]:
    """The classes that one module of sentence-transformers is made of, nested ones included."""
    if folder:
        yield from _named_in_configs(directory, folder)
    for name in ("router_config.json", "config.json"):
        file = os.path.join(folder, name)  # noqa: PTH118 (a name to show, not yet a path)
        content = _read(directory / file)
        if not isinstance(content, dict):
            continue
        for key in ("activation_function", "tokenizer_class"):
            value = content.get(key)
            # Without a dot it is a name in a table of transformers: "gelu", "BertTokenizer".
            if isinstance(value, str) and "." in value and not value.startswith(_OWN_CLASSES):
                yield OwnCode(file, value, needed=True)
        routes = content.get("types")
        for inner, value in routes.items() if isinstance(routes, dict) else ():
            if isinstance(value, str) and not _MODULES.fullmatch(value):
                yield OwnCode(file, value, needed=True)
            nested = os.path.join(folder, inner)  # noqa: PTH118
            _check_inside(directory, nested, file)
            if nested != folder:
                yield from _named_in_module(directory, nested)


def _named_in_pipeline(directory: Path) -> Iterator[OwnCode]:
    index = _read(directory / "model_index.json")
    if not isinstance(index, dict):
        return
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list):  # a file of the model and the class in it
        yield OwnCode("model_index.json", ".".join(_texts(pipeline)), needed=True)
    # diffusers looks for the file of a pipeline that was not asked for: f"{None}.py".
    if (directory / "None.py").is_file():
        yield OwnCode("None.py", "None", needed=True)
    for component, described in index.items():
        if not isinstance(described, list):
            continue
        library = described[0] if described else None
        if component == "_class_name" or not isinstance(library, str):
            continue
        _check_inside(directory, component, "model_index.json")
        name = ".".join(_texts(described[:2]))
        if (directory / component / f"{library}.py").is_file():
            yield OwnCode(f"{component}/{library}.py", name, needed=True)
        elif library.partition(".")[0] not in (*_PIPELINE_LIBRARIES, *_pipeline_modules()):
            yield OwnCode("model_index.json", name, needed=True)
        yield from _named_in_configs(directory, component)


def _pipeline_modules() -> list[str]:
    """The modules of diffusers whose own components a pipeline names, such as a safety checker."""
    package = importlib.util.find_spec("diffusers")
    if package is None or not package.submodule_search_locations:
        return []
    pipelines = Path(package.submodule_search_locations[0]) / "pipelines"
    return [path.stem for path in pipelines.glob("[a-z]*")]


def _check_inside(directory: Path, folder: str, file: str) -> None:
    """Refuses a folder that a file names and that is not below the directory."""
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ModelExportError(
            f"{directory / file} names {folder!r}, outside of the model's directory: "
            "copy it into the directory, and name it there"
        )


# --- The guard ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Guard:
    """One block that is guarded.

    Attributes:
        directories: the model's, which may hold a project and its packages, too.
        caches: where libraries copy the code of models to.
        refused: the files that would have run.
    """

    directories: tuple[str, ...]
    caches: tuple[str, ...]
    refused: list[str]

    def covers(self, path: str) -> bool:
        """Whether a file of code is the model's."""
        real = os.path.realpath(path)
        if any(_is_below(real, cache) for cache in self.caches):
            return True
        for directory in self.directories:
            # A virtual environment in the directory is installed, not a part of the model.
            installed = (os.path.realpath(entry) for entry in sys.path if entry)
            inside = (entry for entry in installed if _is_below(entry, directory))
            if _is_below(real, directory) and not any(_is_below(real, entry) for entry in inside):
                return True
        return False


_active: list[_Guard] = []
_lock = threading.Lock()
_installed = False
_environment: dict[str, str | None] = {}

_WEIGHTS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
"""torch.load then unpickles tensors and nothing else, whatever its caller says
(torch/serialization.py, since 2.6); of the two variables one alone may be set."""


@contextlib.contextmanager
def own_code_refused(*directories: Path | None, trusted: bool) -> Iterator[list[str]]:
    """Keeps code of a model from running while the block loads it.

    It holds for all threads: a file of a model's is refused to whoever imports it meanwhile.

    Args:
        directories: The model's; None for one that its library fetches into its cache.
        trusted: Whether the code may run; then this does nothing.

    Yields:
        The files that were refused so far. A library may swallow the error.

    Raises:
        ModelExportError: From within whatever tried to run a file.
    """
    refused: list[str] = []
    if trusted:
        yield refused
        return
    roots = tuple(os.path.realpath(directory) for directory in directories if directory)
    guard = _Guard(roots, _code_caches(), refused)
    with _lock:
        _install()
        if not _active:
            _environment.update({name: os.environ.get(name) for name in _WEIGHTS_ONLY})
            _set_environment(_WEIGHTS_ONLY)
        _active.append(guard)
    try:
        yield refused
    finally:
        with _lock:
            _active[:] = [other for other in _active if other is not guard]
            if not _active:
                _set_environment(_environment)


def _code_caches() -> tuple[str, ...]:
    """Where the code of models goes: the Hub's cache, and what is copied from there to import."""
    from huggingface_hub import constants

    modules = os.environ.get("HF_MODULES_CACHE") or os.path.join(constants.HF_HOME, "modules")  # noqa: PTH118
    places = (modules, constants.HF_HUB_CACHE)
    return tuple(os.path.realpath(os.path.expanduser(place)) for place in places)  # noqa: PTH111


def _set_environment(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(os.path.join(directory, ""))  # noqa: PTH118


def _check_file(path: str) -> None:
    for guard in list(_active):
        if guard.covers(path):
            guard.refused.append(path)
            raise ModelExportError(f"{path} came with a model and was not run: {_ADVICE}")


def _install() -> None:
    """Has Python's loaders of files ask first. All imports of files, and libraries' own, use them.

    They stay so, and ask nobody when no block is guarded: what is taken back while another thread
    has put its own in place would be lost or stay for ever.
    """
    global _installed
    if _installed:
        return
    _installed = True
    for loader, method in (
        (SourceFileLoader, "exec_module"),
        (SourcelessFileLoader, "exec_module"),
        (ExtensionFileLoader, "create_module"),
    ):
        _ask_before(loader, method)


def _ask_before(loader: Any, method: str) -> None:  # noqa: ANN401 (one of importlib's classes)
    original = getattr(loader, method)

    def asking(self: Any, argument: Any) -> Any:  # noqa: ANN401 (as importlib has it)
        if _active:
            _check_file(self.path)
        return original(self, argument)

    setattr(loader, method, asking)
