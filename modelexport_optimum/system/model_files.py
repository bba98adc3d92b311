"""The files of a model other than its weights and config.json, by their purpose.

Users need them together with the graphs as much as with the weights: the files of a tokenizer, of a
processor, of generation, and of the pooling and normalization of sentence-transformers. Only names
are compared here; nothing is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from modelexport_optimum.system.json_files import read_json

TOKENIZER, PROCESSOR, GENERATION, MODULES, SCHEDULER = (
    "tokenizer",
    "processor",
    "generation config",
    "sentence-transformers modules",
    "scheduler",
)

PATTERNS = {
    # The second line on: `vocab_files_names` of the tokenizers of transformers 4.57.6.
    TOKENIZER: (
        *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
        *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
        *("additional_chat_templates/*",),
        *("vocab.json", "vocab.txt", "merges.txt", "bpe.codes", "dict.txt", "emoji.json"),
        *("normalizer.json", "entity_vocab.json", "byte_maps.json", "prophetnet.tokenizer"),
        *("vocab-src.json", "vocab-tgt.json", "target_vocab.json", "word_shape.json"),
        *("word_pronunciation.json", "source.spm", "target.spm", "spiece.model", "spm.model"),
        *("spm_char.model", "tokenizer.model", "sentencepiece.model", "sentencepiece.bpe.model"),
    ),
    # The last two: a language model for CTC's decoder (`Wav2Vec2ProcessorWithLM`).
    PROCESSOR: (
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        *("alphabet.json", "language_model/*"),
    ),
    GENERATION: ("generation_config.json",),
    SCHEDULER: ("scheduler_config.json",),
    # The pattern is the older and newer names of `Transformer`'s own settings.
    MODULES: ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
}


@dataclass(frozen=True)
class CompanionFile:
    """A file of the source that its export must have, too.

    Attributes:
        kind: Its purpose, one of `PATTERNS`.
        source: Its path.
        folder: Its folder in the export: "", or the folder of a pipeline's component.
        name: Its path below that folder.
        leads_out: Whether it is a link out of the model's directory.
    """

    kind: str
    source: Path
    folder: str
    name: str
    leads_out: bool = False

    @property
    def place(self) -> str:
        """Its path below the export."""
        return (Path(self.folder) / self.name).as_posix()


def companion_files(source: Path, *, pooled: bool = False) -> list[CompanionFile]:
    """Return the files of a model that its export must have, too.

    Args:
        source: The directory of a model of transformers or sentence-transformers, or of a diffusion
            pipeline.
        pooled: Whether sentence-transformers' own modules run after the graph and need their
            settings and weights.
    """
    found = []
    pipeline = (source / "model_index.json").is_file()
    kinds = [TOKENIZER, PROCESSOR, GENERATION, *([SCHEDULER] if pipeline else [])]
    for folder in component_folders(source):
        place = folder if pipeline else ""
        for file in _files(source / folder):
            name = file.relative_to(source / folder).as_posix()
            kind = next((kind for kind in kinds if _matches(name, kind)), None)
            if kind is not None:
                found.append(CompanionFile(kind, file, place, name, _leads_out(file, source)))
    return [*found, *(_module_files(source) if pooled else [])]


def component_folders(source: Path) -> list[str]:
    """Return the folders of a model's tokenizers and processors, "" for the model's own."""
    index = read_json(source / "model_index.json")
    if isinstance(index, dict):
        return [name for name, value in index.items() if isinstance(value, list) and _inside(name)]
    # sentence-transformers may keep the transformer and its tokenizer in a folder.
    return module_folders(source)[:1] or [""]


def module_folders(source: Path) -> list[str]:
    """Return the folders of sentence-transformers' modules, "" for one at the top."""
    modules = read_json(source / "modules.json")
    return [
        _inside(str(module["path"]))
        for module in (modules if isinstance(modules, list) else ())
        if isinstance(module, dict) and "path" in module
    ]


def _module_files(source: Path) -> list[CompanionFile]:
    folders = module_folders(source)
    if folders[:1] != [""]:  # the graph is not where its first module would look for it
        return []
    files = [file for file in source.iterdir() if _matches(file.name, MODULES)]
    for folder in folders[1:]:
        files += _files(source / folder) if folder else []
    return [
        CompanionFile(MODULES, f, "", f.relative_to(source).as_posix(), _leads_out(f, source))
        for f in sorted(files)
    ]


def _inside(folder: str) -> str:
    """Return a folder named in a file, "" if it is outside of the directory."""
    path = Path(folder)
    return "" if path.is_absolute() or ".." in path.parts or not path.parts else path.as_posix()


def _leads_out(file: Path, source: Path) -> bool:
    """Return whether a file is outside; the Hub's cache keeps all files next to its snapshots."""
    directory = source.resolve()
    inside = [directory]
    if directory.parent.name == "snapshots":
        inside.append(directory.parent.parent / "blobs")
    return not any(file.resolve().is_relative_to(place) for place in inside)


def _matches(name: str, kind: str) -> bool:
    """Return whether a path below a folder is of a kind; `*` does not match a slash."""
    patterns = [pattern for pattern in PATTERNS[kind] if pattern.count("/") == name.count("/")]
    return any(fnmatch(name, pattern) for pattern in patterns)


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder that are not hidden."""
    if not folder.is_dir():
        return []
    inner = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    deeper = [
        file
        for path in inner
        if path.is_dir() and not path.is_symlink()
        for file in sorted(path.iterdir())
    ]
    return [path for path in (*inner, *deeper) if path.is_file()]
