"""One call of one module in a run, of PyTorch or of ONNX Runtime on a tagged graph."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of one module.

    Attributes:
        path: Module path in the whole model.
        module_class: Class name.
        number: Index of this call among the module's calls, from 0.
        caller: Path of the module that called it; "" for the root, too.
        outputs: Names of its outputs.
        reads: Names of the values that it read from the outputs of other calls.
        given: Names of the other values that it read, from the calls around it.
        choices: Names of the indices from a TopK in it, outside calls in it.
        draws: Names of its random values, outside calls in it.
        passes_through: Its output equals its input, as in a Dropout that is not training.
        has_weights: It, or a module inside it, has weights.
        needed: An output of the whole depends on what left it.
        varies: What left it depends on an input of the whole.
        drawn: What left it depends on values that were drawn at random.
    """

    path: str
    module_class: str
    number: int
    caller: str = ""
    outputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    draws: tuple[str, ...] = ()
    passes_through: bool = False
    has_weights: bool = False
    needed: bool = True
    varies: bool = True
    drawn: bool = False
