"""The names in a model's files that refer to code of the model; nothing is loaded or imported.

The author of a model chose the names in its files, and the loading library imports some of these
names: classes of transformers (`auto_map`), modules of sentence-transformers (`modules.json`),
components of diffusers (`model_index.json`). Some loaders ask whether the code is trusted only if
it comes from the Hub, and some never ask.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.json_files import json_entries, read_json
from modelexport_optimum.system.text import listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SHOWN = 3
"""Maximum number of names in a message."""

ADVICE = "read it, then add --trust-remote-code"


@dataclass(frozen=True, slots=True)
class OwnCode:
    """A name in a model's files that refers to code of the model.

    Attributes:
        file: The file that has the name, below the model's directory.
        name: What would be imported.
        needed: Whether the model cannot be loaded without it. Otherwise the loader asks whether the
            code is trusted, and else uses its own class or fails.
    """

    file: str
    name: str
    needed: bool

    def __str__(self) -> str:
        """Return the name and its file, in the form of a message."""
        return f"{self.name if self.name.isprintable() else repr(self.name)} in {self.file}"


def in_words(found: Sequence[OwnCode]) -> str:
    """Return in one line which code did not run, and how to allow it."""
    names = list(dict.fromkeys(map(str, found)))
    return f"code of its own, which was not run ({listed(names, _SHOWN)}): {ADVICE}"


def refuse_needed(name: str, found: Sequence[OwnCode]) -> None:
    """Refuse a model that cannot be loaded without its code.

    Raises:
        ModelExportError: Some of it is needed.
    """
    needed = [one for one in found if one.needed]
    if needed:
        raise ModelExportError(f"model {name} has {in_words(needed)}")


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
"""The files with `auto_map` of transformers, which names classes in `.py` files of the model."""

_CUSTOM_GENERATE = "custom_generate/generate.py"
"""The file that transformers runs instead of a model's `generate` (GenerationMixin)."""

_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Keys of a configuration whose value may be `owner/name`: a kernel to fetch from the Hub."""

_MEGATRON = "megatron_core"
"""Key of an adapter's configuration that peft imports as a module (tuners/lora/tp_layer.py)."""

_MODULES = re.compile(r"sentence_transformers\.(\w+\.)*(models|modules)\.\w+(\.\w+)*")
"""The modules of sentence-transformers itself; its functions and losses are not modules."""

_OWN_CLASSES = ("sentence_transformers.", "torch.nn.")
"""Other names in files that it imports and that are not code of the model."""

_PIPELINE_LIBRARIES = ("diffusers", "transformers", "optimum", "onnxruntime")
"""The packages of the classes of a pipeline's components."""


def find_own_code(directory: Path, library: str | None = None) -> list[OwnCode]:
    """Find the code that would run if the model were loaded; load and import nothing.

    Args:
        directory: The model's.
        library: Optimum's name of the library that will load it; by default any library.

    Raises:
        ModelExportError: A file refers its library to a path outside of the directory.
    """
    found = list(_named_in_configs(directory, ""))
    if library in (None, "sentence_transformers"):
        found += _named_in_modules(directory)
    if library in (None, "diffusers"):
        found += _named_in_pipeline(directory)
    return list(dict.fromkeys(found))


def _texts(content: Any) -> Iterator[str]:  # noqa: ANN401 (any JSON)
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)


def _named_in_configs(directory: Path, folder: str) -> Iterator[OwnCode]:
    for name in _CONFIGS:
        file = os.path.join(folder, name)  # noqa: PTH118 (a name to show, not yet a path)
        for key, value in json_entries(read_json(directory / file)):
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
    modules = read_json(directory / "modules.json")
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
    """Yield the classes in a module of sentence-transformers, including nested ones."""
    if folder:
        yield from _named_in_configs(directory, folder)
    for name in ("router_config.json", "config.json"):
        file = os.path.join(folder, name)  # noqa: PTH118 (a name to show, not yet a path)
        content = read_json(directory / file)
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
    index = read_json(directory / "model_index.json")
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
    """Return the diffusers modules of the components that a pipeline names."""
    package = importlib.util.find_spec("diffusers")
    if package is None or not package.submodule_search_locations:
        return []
    pipelines = Path(package.submodule_search_locations[0]) / "pipelines"
    return [path.stem for path in pipelines.glob("[a-z]*")]


def _check_inside(directory: Path, folder: str, file: str) -> None:
    """Refuse a folder in a file if it is not below the directory."""
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ModelExportError(
            f"{directory / file} names {folder!r}, outside of the model's directory: "
            "copy it into the directory, and change the path"
        )
