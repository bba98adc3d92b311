"""The sizes of a graph's symbolic dimensions, and where each comes from.

The first of these sources that has a size wins: the user's options, the given tensors, the JSON
files of the export, the requirements of the graph, a default.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx import TensorProto

from modelexport_optimum.errors import InvalidModelError, UsageError
from modelexport_optimum.example_inputs.declared import Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np

    from modelexport_optimum.example_inputs.declared import Declared
    from modelexport_optimum.onnx_file.input_use import InputUse
    from modelexport_optimum.onnx_file.skeleton import Value

DEFAULT_LENGTH = 128
"""Number of tokens, or fewer if the model takes fewer."""

_SIDE = 64
"""Pixels of an image's side, if nothing declares it."""

_SAMPLES = 16000
"""Samples of a second of sound, if nothing declares the rate."""

_COUNT = 2
"""Number of items of other kinds: choices of an answer, points on an image."""

_MAX_ELEMENTS = 2**28
"""Maximum size of an example input: 2 GiB of 64-bit numbers."""

_POSITIONS = "the graph's positions"

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
)


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The user's requests for the inputs.

    Attributes:
        batch_size: Size of the dimensions that are a batch's; None for 1.
        sequence_length: Number of tokens, also of cached tokens and of the encoder's; None for
            `default_length`, or fewer if the model takes fewer.
        sizes: Sizes of dimensions by name, with the highest priority.
        default_length: Number of tokens if none is requested.
        default_size: Size of dimensions that are not known; None to ask the user for it.
        one_step: Whether a decoder with cached tokens gets one new token, as in generation, or as
            many as it has cached.
    """

    batch_size: int | None = None
    sequence_length: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    default_length: int = DEFAULT_LENGTH
    default_size: int | None = None
    one_step: bool = True


class Dimensions:
    """Finds the sizes of the dimensions of one graph's inputs."""

    def __init__(
        self,
        path: Path,
        inputs: Iterable[Value],
        use: InputUse,
        declared: Declared,
        input_options: InputOptions,
        *,
        uses_past: bool = True,
    ) -> None:
        """Prepare the search.

        `uses_past` says whether the branch that runs reads the cache.
        """
        self._path = path
        self._use = use
        self._declared = declared
        self._options = input_options
        self._uses_past = uses_past
        self._inputs = list(inputs)
        names = {dim for value in self._inputs for dim in value.shape or () if isinstance(dim, str)}
        self._has_past = any("past" in name for name in names)
        self._has_tokens = any(value.elem_type not in FLOATS for value in self._inputs)
        # A decoder next to its encoder takes one more token at each step.
        self._steps = (
            input_options.one_step and self._has_past and any("decoder" in name for name in names)
        )
        self._known: dict[str, Size] = {
            name: Size(size, f"--size {name}") for name, size in input_options.sizes.items()
        }
        self._read: set[str] = set()
        for value in self._inputs:
            # What is cached of an encoder is as long as what it gave, which may be fixed.
            length = (value.shape or ())[1:2]
            if value.name.startswith("encoder_") and length and isinstance(length[0], int):
                self._known.setdefault("encoder_sequence_length", Size(length[0], value.name))

    @property
    def sizes(self) -> dict[str, Size]:
        """The sizes of the dimensions that were read, by name."""
        return {name: size for name, size in self._known.items() if name in self._read}

    def bind(self, value: Value, array: np.ndarray) -> bool:
        """Use the sizes of an array that is given for an input, if it fits the input."""
        shape = value.shape
        if shape is None or len(shape) != array.ndim:
            return False
        pairs = list(zip(shape, array.shape, strict=True))
        found: dict[str, Size] = {}
        for dim, size in pairs:
            known = self._known.get(dim) if isinstance(dim, str) else None
            if (isinstance(dim, int) and dim != size) or (known and known.size != size):
                return False
            if isinstance(dim, str) and _is_name(dim):
                found[dim] = Size(size, f"the tensor that is given for {value.name}")
        self._known = {**found, **self._known}
        self._read |= found.keys()
        return True

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of an array for an input.

        Raises:
            UsageError: The size of a dimension is not known.
            InvalidModelError: The graph does not say how many dimensions the input has.
        """
        if value.shape is None:
            raise InvalidModelError(
                f"{self._path} does not say the shape of its input {value.name}: "
                "give the inputs with --inputs FILE.npz"
            )
        shape = tuple(self._size(value, axis, dim) for axis, dim in enumerate(value.shape))
        if min(shape, default=0) < 0 or math.prod(shape) > _MAX_ELEMENTS:
            raise UsageError(
                f"the input {value.name} of {self._path} has the shape {list(shape)[:8]}, "
                "for which no input can be generated: give the inputs with --inputs FILE.npz"
            )
        return shape

    def _size(self, value: Value, axis: int, dim: int | str | None) -> int:
        if isinstance(dim, int):
            return dim
        if dim is not None and not _is_name(dim):
            if dim in self._known:
                self._read.add(dim)
                return self._known[dim].size
            # Optimum's spellings of sums and products.
            if "+" in dim:
                return sum(self._size(value, axis, part.strip()) for part in dim.split("+"))
            parts = re.split(r"_x_|\s+x\s+", dim)
            if len(parts) > 1:
                return math.prod(self._size(value, axis, part.strip()) for part in parts)
            if dim.strip().isdecimal():
                return int(dim)
        name = dim or f"{value.name}.{axis}"
        self._read.add(name)
        if name not in self._known:
            found = self._found(value, axis, dim or "")
            if found is None and self._options.default_size is not None:
                found = Size(self._options.default_size, "default")
            if found is None:
                raise UsageError(
                    f"{self._path} does not say the size of {dim or f'dimension {axis}'} of its "
                    f"input {value.name}: give --size {name}=N, or the inputs with "
                    "--inputs FILE.npz"
                )
            self._known[name] = found
        return self._known[name].size

    def _found(self, value: Value, axis: int, name: str) -> Size | None:
        if "batch" in name:
            asked = self._options.batch_size
            return Size(1, "default") if asked is None else Size(asked, "--batch-size")
        found = None
        if value.elem_type in FLOATS and "past" not in name:
            found = self._of_picture(value, axis, name) or self._of_signal(value, axis, name)
        if found is None and name:
            found = self._declared.number(name)
        if found is not None:
            return found
        if "seq" in name or "length" in name:
            return self._length(name)
        if name.startswith(("num_", "nb_", "n_")):
            return Size(_COUNT, "default")
        return Size(1, "default") if value.shape is not None and len(value.shape) == 1 else None

    def _of_picture(self, value: Value, axis: int, name: str) -> Size | None:
        """Return the channels and sides of images, and of the latents of diffusion models."""
        rank = len(value.shape or ())
        if name.endswith("height_width"):  # patches of two by two, one after the other
            side = self._declared.number("sample_size") or Size(_SIDE // 4, "default")
            return Size((side.size // 2) ** 2, side.source)
        if rank == 4 and axis == 1:
            channels = self._use.conv_channels(value.name)
            if channels:
                return Size(channels, "the graph's Conv")
            return self._declared.number("num_channels", "in_channels") or Size(3, "default")
        if not name.endswith(("height", "width")) and not (rank == 4 and axis > 1):
            return None
        sample = self._declared.number("sample_size")
        if sample:
            halved = (self._declared.count("block_out_channels") or 1) - 1
            shrunk = 2**halved if name.startswith("latent") and halved < 16 else 1
            return Size(max(1, sample.size // shrunk), sample.source)
        picture = self._declared.picture()
        if picture is None:
            in_graph = self._use.picture_side(value.name)
            return Size(in_graph, _POSITIONS) if in_graph else Size(_SIDE, "default")
        # By position: Optimum names the axes of some models' pictures the other way round.
        return Size(picture[0] if axis % 2 == 0 else picture[1], picture[2])

    def _of_signal(self, value: Value, axis: int, name: str) -> Size | None:
        """Return the lengths of sounds, of their spectra, and of other sequences of numbers."""
        asked = self._options.sequence_length
        dims = value.shape or ()
        if not ("seq" in name or "length" in name or "audio" in name) or asked is not None:
            return None
        if len(dims) == 2 and axis == 1:
            return self._declared.number("sampling_rate") or Size(_SAMPLES, "default")
        if len(dims) != 3:
            return None
        channels = self._use.conv_channels(value.name)
        if axis == 2 and channels in (dims[1], None):
            frames = self._declared.number("nb_max_frames")
            positions = self._declared.number("max_source_positions")
            if frames:
                return frames
            if positions:  # Whisper's second convolution has a stride of two.
                return Size(2 * positions.size, positions.source)
        return None if self._has_tokens else self._declared.number("context_length")

    def _length(self, name: str) -> Size:
        """Return the number of tokens, cached ones or new ones."""
        if "past" in name and not self._uses_past:
            return Size(1, "not read")
        is_step = self._steps and self._uses_past
        if is_step and "decoder" in name and "past" not in name:
            return Size(1, "one step of the decoder")
        if self._options.sequence_length is not None:
            return Size(self._options.sequence_length, "--sequence-length")
        longest = self._longest()
        # What is cached and what is new have their positions together.
        most = longest.size
        if self._options.one_step and (is_step or "decoder" in name):  # which makes room for a step
            most -= 1
        elif self._has_past and (self._uses_past or not self._options.one_step):
            most //= 2
        if most < self._options.default_length:
            return Size(max(1, most), longest.source)
        return Size(self._options.default_length, "default")

    def _longest(self) -> Size:
        in_graph = self._use.longest()
        limits = [Size(in_graph, _POSITIONS) if in_graph else None, self._declared.longest()]
        none = Size(_MAX_ELEMENTS, "default")
        return min(filter(None, limits), key=lambda limit: limit.size, default=none)


def _is_name(dim: str) -> bool:
    return not ("+" in dim or "_x_" in dim or " x " in dim or dim.strip().isdecimal())
