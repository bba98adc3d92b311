"""A sentence-transformers model, loaded as its users load it.

They use `SentenceTransformer(DIR, backend="onnx")`. It runs a graph with the output
`last_hidden_state`, and then its own modules, which pool and normalize. Optimum's own export of
these models has all these steps in the graph, and is meant for plain ONNX Runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modelexport_optimum.errors import first_line
from modelexport_optimum.own_code.named_code import find_own_code, in_words
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.providers.session import open_session, quiet_options
from modelexport_optimum.system.model_files import module_folders
from modelexport_optimum.verifying.exported_files import precision
from modelexport_optimum.verifying.source_files import is_pooled_outside

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from modelexport_optimum.verifying.exported_files import Exported

SENTENCES = [
    "A cat sits on the mat.",
    "The stock market fell sharply today, and nobody knew why.",
    " ".join(["This text is longer than the model reads, so that where it is cut counts."] * 60),
]

TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
"""Largest norm of the difference, relative to the norm of the embedding: half precision keeps 11
bits, bfloat16 8, and errors add up over the layers."""

EMBEDDING = "sentence_embedding"
"""The name of the embedding output in Optimum's graphs of this library."""

USED_BY_ITSELF = (
    "for ONNX Runtime and ORTModelForCustomTasks; for SentenceTransformer(DIR, "
    'backend="onnx") and ORTModelForFeatureExtraction export with '
    "--library-name transformers --task feature-extraction"
)


def is_of_sentences(exported: Exported) -> bool:
    """Return whether the export gives embeddings of sentences."""
    if exported.library == "sentence_transformers":
        return EMBEDDING in exported.outputs
    return is_pooled_outside(exported) and bool(module_folders(exported.directory))


def check_embeddings(exported: Exported, model: Path | None) -> tuple[str, str]:
    """Check that the export gives the model's embeddings, run as users run it."""
    inside = exported.library == "sentence_transformers"
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        how = USED_BY_ITSELF if inside else 'for SentenceTransformer(DIR, backend="onnx")'
        return "unavailable", f"{how}; to compare: pip install sentence-transformers"
    for directory in (exported.directory, model):
        if directory is not None and not exported.trust_remote_code:
            own_code = find_own_code(directory, "sentence_transformers")
            if own_code:
                return "unavailable", f"{directory.name} has {in_words(own_code)}"
    try:
        source = None if model is None else _load(exported, model, "torch")
        expected = None if source is None else source.encode(SENTENCES)
        if not inside:
            found = _load(exported, exported.directory, "onnx").encode(SENTENCES)
        elif source is not None:
            found = _run_graph(exported, source)
        else:
            return "ok", f"{EMBEDDING} is {USED_BY_ITSELF}"
    except Exception as error:  # the library's modules may raise anything
        return "failed", f"sentence-transformers cannot load or run it: {first_line(error)}"
    what = EMBEDDING if inside else 'SentenceTransformer(DIR, backend="onnx")'
    use = f" ({USED_BY_ITSELF})" if inside else ""
    if expected is None:
        return "ok", f"{what} gives {found.shape[1]} numbers for each sentence{use}"
    return _compare(what, found, expected, TOLERANCES[precision(exported)], use)


def _load(exported: Exported, directory: Path, backend: Literal["torch", "onnx"]) -> Any:  # noqa: ANN401
    from sentence_transformers import SentenceTransformer

    arguments = {"provider": "CPUExecutionProvider", "export": False} if backend == "onnx" else {}
    return SentenceTransformer(
        str(directory),
        backend=backend,
        device="cpu",
        trust_remote_code=exported.trust_remote_code,
        local_files_only=True,
        model_kwargs=arguments,
    )


def _run_graph(exported: Exported, source: Any) -> NDArray[Any]:  # noqa: ANN401
    """Return the graph's own embeddings of the sentences, with the model's tokenizer."""
    file = next(
        file
        for file, graph in exported.graphs.items()
        if any(value.name == EMBEDDING for value in graph.outputs)
    )
    session = open_session(str(exported.directory / file), Provider(CPU), quiet_options())
    wanted = {value.name for value in session.get_inputs()}
    rows = []
    for sentence in SENTENCES:
        tokens = source.tokenize([sentence])
        inputs = {name: np.asarray(value) for name, value in tokens.items() if name in wanted}
        rows.append(session.run([EMBEDDING], inputs)[0])
    return np.concatenate(rows)


def _compare(
    what: str, found: NDArray[Any], expected: NDArray[Any], tolerance: float, use: str
) -> tuple[str, str]:
    if found.shape != expected.shape:
        return "failed", (
            f"{what} gives {found.shape[1]} numbers for each sentence, the model "
            f"{expected.shape[1]}"
        )
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(theirs, axis=1)
    difference = float((np.linalg.norm(ours - theirs, axis=1) / np.maximum(norms, 1e-9)).max())
    if not difference <= tolerance:
        return "failed", (
            f"{what} gives other embeddings than the model: norm {np.linalg.norm(ours[0]):.3g} "
            f"instead of {norms[0]:.3g}, relative difference {difference:.2g}"
        )
    return "ok", f"{what} gives the model's embeddings within {max(difference, 1e-9):.1g}{use}"
