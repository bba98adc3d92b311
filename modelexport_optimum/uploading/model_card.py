"""The model card of an export: its source, its modules, and how to load it.

Names of modules and messages come from models of unknown authors. In the text they are formatted as
code, where Markdown and HTML have no effect, and huggingface_hub writes the YAML. Modules that
import onnx are imported where they are used, because the check of a manifest imports this module.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelexport_optimum.errors import UsageError
from modelexport_optimum.system.notebook import outermost
from modelexport_optimum.system.text import visible
from modelexport_optimum.system.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from modelexport_optimum.hierarchy.inspect import ModuleView

CARD = "README.md"
"""The file that the Hub shows as a repository's card."""

_MOST_ROWS = 24
"""Maximum number of modules of a file in the card; at least the first level is shown."""

_MOST_CHARACTERS = 200

_END = "<!-- Written by modelexport-optimum, which replaces it unless it was edited: {digest} -->"
_WRITTEN = re.compile(re.escape(_END).replace(r"\{digest\}", "([0-9a-f]{64})") + r"\s*\Z")

_PLAIN = re.compile(r"(?:[A-Za-z0-9 ,;()'%=+-]|[.:](?![A-Za-z0-9])|(?<=[0-9])\.(?=[0-9]))*")
"""Matches words and numbers without a meaning in Markdown: no address, no emphasis, no tag."""

_HUB_TASKS = {
    "semantic-segmentation": "image-segmentation",
    "text2text-generation": None,  # the Hub has its parts: summarization, translation
    "audio-frame-classification": "audio-classification",
    "audio-xvector": "audio-classification",
    "masked-im": None,
    "inpainting": "image-to-image",
    "auto": None,  # it could not be found out
}
"""The Hub's names of tasks (https://huggingface.co/tasks), if Optimum's differ."""


@dataclass(frozen=True)
class CardFacts:
    """The facts of a card that are not in the directory.

    Attributes:
        source: The model's name on the Hub, the last part of its directory's, or its class.
        on_hub: Whether the source is a name on the Hub.
        task: The task of the export.
        library: Its library, in Optimum's name.
        ort_class: The class that loads it, None if plain ONNX Runtime does.
        checks: Name, status and message of each check.
        loaded_from: The argument of the example: the repository, or the directory's name.
    """

    source: str
    on_hub: bool
    task: str
    library: str | None
    ort_class: str | None
    checks: Sequence[tuple[str, str, str]]
    loaded_from: str


def card_of(directory: Path, facts: CardFacts) -> str:
    """Return the model card of an export."""
    sections = [
        _metadata(facts),
        f"# {_code(facts.loaded_from.rpartition('/')[2])}",
        f"{_code(facts.source)}, exported to ONNX with "
        "[Optimum](https://huggingface.co/docs/optimum-onnx) for the task "
        f"{_code(facts.task)}. Every node of the graph is tagged with the PyTorch module that it "
        "came from, by modelexport-optimum. For its license, its training data and its limits, see "
        f"the model that it was exported from{_link(facts)}.",
        "## Load it",
        *_example(directory, facts),
        "## Checks",
        "These checks ran on the machine that exported the model.",
        _table(
            ("check", "result", ""),
            (
                (_code(name), _code(status), _text(message))
                for name, status, message in facts.checks
            ),
        ),
        "## Modules",
        *_hierarchy(directory),
        "## Versions",
        _table(("package", "version"), _versions()),
    ]
    text = "\n\n".join(sections) + "\n\n"
    return text + _END.format(digest=_digest(text)) + "\n"


def is_own(card: str) -> bool:
    """Return whether `card_of` wrote a card, and nobody has edited it."""
    found = _WRITTEN.search(card)
    return found is not None and found[1] == _digest(card[: found.start()])


def is_own_file(path: Path) -> bool:
    """Return whether a file is a card that `card_of` wrote, and nobody has edited it."""
    return is_own(path.read_bytes().decode("utf-8", errors="replace"))


def has_card_of_others(directory: Path) -> bool:
    """Return whether a directory has a card that this tool did not write."""
    path = directory / CARD
    return path.is_file() and not is_own_file(path)


def check_card(directory: Path) -> None:
    """Refuse to replace a card that this tool did not write.

    Raises:
        UsageError: There is one.
    """
    if has_card_of_others(directory):
        raise UsageError(
            f"{directory / CARD} was not written by this program, or was edited: move it away, or "
            "leave out --model-card"
        )


def place_card(directory: Path, replaced: Path, card: str | None) -> list[str]:
    """Write the card of an export, or keep the card that somebody wrote for the old export.

    Returns:
        Warnings about it, one line each.
    """
    if card is not None:
        (directory / CARD).write_text(card, encoding="utf-8", errors="replace")
    elif has_card_of_others(replaced) and not (directory / CARD).exists():
        shutil.copy2(replaced / CARD, directory / CARD)
        return [f"{CARD} was kept from the old export: check whether it is still correct"]
    return []


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


# --- The parts of a card --------------------------------------------------------------------------


def _metadata(facts: CardFacts) -> str:
    """Return the YAML header of the card, which the Hub reads."""
    from huggingface_hub import ModelCardData

    task = facts.task.removesuffix("-with-past")
    data = ModelCardData(
        library_name=_word((facts.library or "").replace("_", "-")),
        pipeline_tag=_word(_HUB_TASKS.get(task, task) or ""),
        base_model=facts.source if facts.on_hub else None,
        tags=["onnx", "optimum", "modelexport-optimum"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _word(name: str) -> str | None:
    """Return a name in the form of the Hub's names, which is safe in YAML; else None."""
    return name if re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) else None


def _link(facts: CardFacts) -> str:
    if not facts.on_hub:
        return ""
    return f", [{_code(facts.source)}](https://huggingface.co/{facts.source})"


def _example(directory: Path, facts: CardFacts) -> Iterator[str]:
    where = _python(facts.loaded_from)
    if facts.ort_class is not None:
        yield _python_block(
            f"from optimum.onnxruntime import {facts.ort_class}",
            "",
            f"model = {facts.ort_class}.from_pretrained({where})",
        )
        return
    file = min(path.relative_to(directory).as_posix() for path in directory.rglob("*.onnx"))
    yield "Optimum has no class for this export. Load it with ONNX Runtime:"
    yield _python_block(
        "import huggingface_hub, onnxruntime",
        "",
        f"directory = huggingface_hub.snapshot_download({where})",
        f'session = onnxruntime.InferenceSession(f"{{directory}}/" + {_python(file)})',
    )


def _python(text: str) -> str:
    """Return a text as Python source, in characters without a meaning in Markdown."""
    return '"' + ascii(text)[1:-1].replace('"', '\\"').replace("`", "\\x60") + '"'


def _python_block(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _hierarchy(directory: Path) -> Iterator[str]:
    """Yield a table of the outer modules for each file."""
    from modelexport_optimum.hierarchy.inspect import inspect

    for view in inspect(directory):
        name = view.file.path.relative_to(directory).as_posix()
        whole = view.whole
        yield f"In {_code(name)}, {whole.node_count:,} nodes and {whole.parameters:,} parameters:"
        shown = outermost(view.modules, lambda module: module.level, _MOST_ROWS)
        yield _table(("module", "class", "nodes", "parameters"), map(_row, shown))
        if left := len(view.modules) - len(shown):
            yield f"and {left:,} submodules of these."


def _row(module: ModuleView) -> tuple[str, str, str, str]:
    path, name = module.module.path, module.module.module_class
    amount = module.total
    return (
        _code(path) if path else "the model",
        _code(name),
        f"{amount.node_count:,}",
        f"{amount.parameters:,}",
    )


def _versions() -> Iterator[tuple[str, str]]:
    from modelexport_optimum.tags.model_record import RECORDED_PACKAGES, installed_versions

    yield "modelexport-optimum", __version__
    packages = (*RECORDED_PACKAGES, "optimum-onnx", "onnx", "onnxruntime")
    for package, version in installed_versions(packages).items():
        yield package, _code(version)


# --- Names and messages of others -----------------------------------------------------------------


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _code(text: str) -> str:
    r"""Return a text as code, with the two characters that could end it as `\x60` and `\x7c`."""
    shown = _shortened(visible(text)).replace("`", "\\x60").replace("|", "\\x7c")
    return f"`{shown}`" if shown.strip() else "` `"


def _text(message: str) -> str:
    """Return a message unchanged if it is plain words, and as code otherwise."""
    shown = _shortened(message)
    return shown if _PLAIN.fullmatch(shown) and "www" not in shown.lower() else _code(message)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
