"""The files of an export in the order in which they run, each with the outputs of earlier files.

An encoder's output is the decoder's input, and the decoder's cache is the input of its next step.
Optimum's names for outputs and inputs show which output becomes which input.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from modelexport_optimum.onnx_file.skeleton import wanted_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile


def input_name(output: str) -> str:
    """Return the name of the input that an output is passed to."""
    if output == "last_hidden_state":
        return "encoder_hidden_states"
    return re.sub(r"^present(_key_values)?\.", "past_key_values.", output)


def in_order(files: Sequence[TaggedFile]) -> list[TaggedFile]:
    """Return the files, each after the files whose outputs it takes."""

    def taken(file: TaggedFile) -> int:
        others = (other for other in files if other is not file)
        given = {input_name(v.name) for other in others for v in other.model.graph.outputs}
        return sum(value.name in given for value in wanted_inputs(file.model.graph))

    return sorted(files, key=taken)


def keep_outputs(given: dict[str, np.ndarray], outputs: Mapping[str, Any]) -> None:
    """Add the outputs of a run, by the names of the inputs that take them; earlier ones stay."""
    for name, value in outputs.items():
        # A branch that reads no cache of the encoder gives an empty one.
        if isinstance(value, np.ndarray) and value.size:
            given.setdefault(input_name(name), value)
