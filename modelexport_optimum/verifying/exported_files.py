"""The content of an exported directory: its graphs, its library and task, and its config.json.

`verify.py` checks it. No weight is read here, and no session is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.onnx_file.skeleton import narrowest_float, walk_initializers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig

    from modelexport_optimum.module_trees.model_classes import Candidate
    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Tensor

    Shape = tuple[int | str | None, ...]

CACHE_PREFIXES = ("past_key_values", "present")
"""The prefixes of Optimum's names of cached keys and values, as inputs and outputs."""


@dataclass(frozen=True)
class Exported:
    """An exported directory, as far as it can be read.

    Attributes:
        directory: Where it is.
        models: The `.onnx` files that could be read, by path below the directory.
        unreadable: The other `.onnx` files, each with the reason.
        settings: config.json or model_index.json, unchanged.
        settings_error: What is wrong with it, "" if nothing is.
        config: The configuration that transformers reads from config.json.
        library: Optimum's name of the model's library.
        classes: The classes that config.json may describe, with their tasks.
        declared: The tasks of the classes in `architectures`.
        shown: The tasks whose outputs the graphs have.
        task: What the export is for, None if neither tells.
        trust_remote_code: Whether code in the directory may run.
    """

    directory: Path
    models: dict[str, Model]
    unreadable: dict[str, str]
    settings: dict[str, Any]
    settings_error: str = ""
    config: PretrainedConfig | None = None
    library: str = "transformers"
    classes: Sequence[Candidate] = ()
    declared: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    task: str | None = None
    trust_remote_code: bool = False

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs of these files."""
        return {file: model.graph for file, model in self.models.items()}

    @property
    def inputs(self) -> set[str]:
        """The names of all graphs' inputs."""
        return {value.name for graph in self.graphs.values() for value in graph.inputs}

    @property
    def outputs(self) -> dict[str, Shape]:
        """The outputs that show the task: those of the decoder, if there is one."""
        decoders = [name for name in self.graphs if "decoder" in Path(name).name]
        found: dict[str, Shape] = {}
        for name in decoders[:1] or self.graphs:
            for value in self.graphs[name].outputs:
                if not value.name.startswith(CACHE_PREFIXES):
                    found.setdefault(value.name, value.shape or ())
        return found

    @property
    def initializers(self) -> dict[str, list[Tensor]]:
        """The headers of each file's initializers, nested graphs' included."""
        return {file: list(walk_initializers(graph)) for file, graph in self.graphs.items()}

    def load(self, loader: Any, folder: Path) -> Any:  # noqa: ANN401
        """Load a configuration, tokenizer or processor; nothing is fetched.

        Raises:
            Exception: The class may raise anything about its files.
        """
        return loader.from_pretrained(
            folder, trust_remote_code=self.trust_remote_code, local_files_only=True
        )

    @property
    def uses_cache(self) -> bool:
        """Whether a decoder takes cached keys and values."""
        return any(name.startswith(CACHE_PREFIXES) for name in self.inputs)


def vocabulary_size(config: PretrainedConfig | None) -> int | None:
    """Return the largest vocabulary of a configuration and its parts."""
    from transformers import PretrainedConfig

    if config is None:
        return None
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    found: list[Any] = []
    for part in (config, *parts):
        value = getattr(part, "vocab_size", None)
        found += value if isinstance(value, list | tuple) else [value]
    numbers = [n for n in found if isinstance(n, int) and not isinstance(n, bool)]
    return max(numbers, default=None)


def precision(exported: Exported) -> str:
    """Return the floating point type of the weights."""
    return narrowest_float(tensor for own in exported.initializers.values() for tensor in own)
