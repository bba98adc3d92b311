"""The errors of Optimum's exporter, explained in the user's words."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError, first_line
from modelexport_optimum.exporting.hub import explain_hub_error
from modelexport_optimum.own_code.guard import pickled_code
from modelexport_optimum.own_code.named_code import in_words
from modelexport_optimum.system.packages import OTHER_EXPORTER, installed_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelexport_optimum.exporting.source import Source


@contextlib.contextmanager
def errors_explained(source: Source) -> Iterator[None]:
    """Raise every error as one line that says why Optimum did not export the model."""
    try:
        yield
    except ModelExportError:
        raise
    except Exception as error:
        message = explain_hub_error(error, source.name, source.place.revision)
        raise ModelExportError(message or _explain(error, source)) from error


def _explain(error: Exception, source: Source) -> str:
    pickled = pickled_code(error)
    if pickled is not None:
        return f"model {source.name} has {pickled}"
    text = first_line(error)
    # The reader of safetensors says of a file that may not be read that it is not there.
    for file in source.directory.rglob("*") if source.directory else ():
        is_named = file.name in str(error) and os.access(file, os.F_OK)
        if is_named and not os.access(file, os.R_OK):
            return f"model {file} cannot be read: give yourself the right to, or a copy"
    if source.own_code and "trust_remote_code" in str(error):
        return f"model {source.name} has {in_words(source.own_code)}"
    frames = traceback.extract_tb(error.__traceback__)
    if "pad token" in text or any("tokenization" in frame.filename for frame in frames):
        return (
            f"model {source.name} has no tokenizer that can be loaded, but this task needs the "
            "padding token: put the tokenizer's files next to the model, or give --pad_token_id "
            f"({text})"
        )
    if "custom_onnx_configs" in text:
        named = re.search(r"export a (\S+) model", text)
        return no_export_of(named[1] if named else source.name)
    if "does not recognize this architecture" in text:
        named = re.search(r"model type (\S+)", text)
        return (
            f"transformers {installed_version('transformers')} does not know the model "
            f"type {named[1] if named else ''} of {source.name}: {OTHER_EXPORTER}"
        )
    # Optimum's own advice is to open an issue; the sentences before it say what is wrong.
    text = text.partition(" Please open an issue")[0]
    if error.__cause__ is not None:
        text += f" ({first_line(error.__cause__)})"
    if source.own_code:
        text += f" (the model has {in_words(source.own_code)})"
    return f"Optimum cannot export {source.name}: {text}"


def no_export_of(model_type: str) -> str:
    """Return the line for models that Optimum does not export, with the other ways to export."""
    return (
        f"Optimum cannot export {model_type} models: {OTHER_EXPORTER}; export() in Python takes "
        "custom_onnx_configs for them"
    )
