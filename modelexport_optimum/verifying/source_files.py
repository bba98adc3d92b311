"""The check of the source's files: the files that the export lacks, and the reason."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from modelexport_optimum.errors import first_line
from modelexport_optimum.system.model_files import PROCESSOR, TOKENIZER, companion_files

if TYPE_CHECKING:
    from pathlib import Path

    from modelexport_optimum.system.model_files import CompanionFile
    from modelexport_optimum.verifying.exported_files import Exported

_LOADERS = {
    TOKENIZER: ("AutoTokenizer",),
    PROCESSOR: ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"),
}


def is_pooled_outside(exported: Exported) -> bool:
    """Return whether sentence-transformers can run the graph, and then its own modules."""
    return (
        exported.library == "transformers"
        and exported.task == "feature-extraction"
        and "last_hidden_state" in exported.outputs
    )


def check_files(exported: Exported, model: Path) -> tuple[str, str]:
    """Check that the export has each companion file that the model has."""
    wanted = companion_files(model, pooled=is_pooled_outside(exported))
    missing: dict[tuple[str, str], list[CompanionFile]] = {}
    for file in wanted:
        if not (exported.directory / file.place).is_file():
            missing.setdefault((file.folder, file.kind), []).append(file)
    if missing:
        return "failed", "; ".join(
            f"of the {kind} {', '.join(file.place for file in files)} "
            f"{'are' if len(files) > 1 else 'is'} missing: {_reason(exported, model, files)}"
            for (_, kind), files in missing.items()
        )
    if not wanted:
        return "ok", "the model has no tokenizer, processor or generation config"
    counts = Counter(file.kind for file in wanted)
    return "ok", "the same files as in the model: " + ", ".join(
        f"{count} file{'s' * (count > 1)} of the {kind}" for kind, count in counts.items()
    )


def _reason(exported: Exported, model: Path, files: list[CompanionFile]) -> str:
    """Return why files of one kind were not saved: the error of loading them."""
    import transformers

    if all(file.leads_out for file in files):
        return f"a link that leads out of {model}"
    folder = files[0].source.parents[files[0].name.count("/")]
    errors: list[Exception] = []
    loaded = False
    for name in _LOADERS.get(files[0].kind, ()):
        try:
            found = exported.load(getattr(transformers, name), folder)
        except Exception as error:  # the classes may raise anything about their files
            errors.append(error)
        else:  # AutoProcessor gives the tokenizer where it finds no processor
            loaded |= name == "AutoTokenizer" or not isinstance(
                found, transformers.PreTrainedTokenizerBase
            )
    # A library that is not installed is why the others fail, too.
    errors.sort(key=lambda error: not isinstance(error, ImportError))
    if errors and (isinstance(errors[0], ImportError) or not loaded):
        return _explain(errors[0])
    return f"copy {'them' if len(files) > 1 else 'it'} from {model}"


def _explain(error: Exception) -> str:
    """Return one line of transformers' error for a tokenizer or processor that it cannot load."""
    from transformers.utils.import_utils import BACKENDS_MAPPING

    text = first_line(error)
    if not isinstance(error, ImportError):
        return text
    # How to install it follows the first sentence, in a line of its own, where it is said at all.
    lacking = [
        name
        for name, (available, _) in BACKENDS_MAPPING.items()
        if name in text.lower() and callable(available) and not available()
    ]
    command = re.search(r"pip install (?:-U )?([\w-]+)", str(error))
    package = command[1] if command else next(iter(lacking), "")
    install = f": pip install {package}, and export again" if package else ""
    return text.partition(". ")[0].removesuffix(".") + install
