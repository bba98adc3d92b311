"""The names of the tasks that a model can be exported for.

They are Optimum's names. Optimum's own list needs the import of PyTorch, which takes 5 to 20
seconds. A test compares this list with Optimum's.
"""

from __future__ import annotations

from modelexport_optimum.errors import UsageError, did_you_mean

TASKS = (
    "audio-classification",
    "audio-frame-classification",
    "audio-xvector",
    "automatic-speech-recognition",
    "depth-estimation",
    "document-question-answering",
    "feature-extraction",
    "fill-mask",
    "image-classification",
    "image-segmentation",
    "image-text-to-text",
    "image-to-image",
    "image-to-text",
    "inpainting",
    "keypoint-detection",
    "mask-generation",
    "masked-im",
    "multiple-choice",
    "object-detection",
    "question-answering",
    "reinforcement-learning",
    "semantic-segmentation",
    "sentence-similarity",
    "text-classification",
    "text-generation",
    "text-to-audio",
    "text-to-image",
    "text2text-generation",
    "time-series-forecasting",
    "token-classification",
    "visual-question-answering",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
)
"""`TasksManager.get_all_tasks()` of optimum 2.1.0."""

SYNONYMS = (
    "audio-ctc",
    "causal-lm",
    "default",
    "image-feature-extraction",
    "latent-consistency",
    "masked-lm",
    "pretraining",
    "seq2seq-lm",
    "sequence-classification",
    "speech2seq-lm",
    "stable-diffusion",
    "stable-diffusion-xl",
    "summarization",
    "text-to-speech",
    "translation",
    "vision2seq-lm",
    "zero-shot-classification",
)
"""Other names of these tasks, `TasksManager.synonyms_for_task(task)`."""

WITH_PAST = (
    "automatic-speech-recognition",
    "feature-extraction",
    "image-to-text",
    "text-generation",
    "text2text-generation",
)
"""The tasks that some architecture also exports with a cache of keys and values."""


def check_task(task: str) -> None:
    """Refuse a task that Optimum does not know.

    Optimum is imported only for a name that is not in these lists; another version may know it.

    Raises:
        UsageError: Optimum does not know it.
    """
    name = task.removesuffix("-with-past")
    if task == "auto" or name in TASKS or name in SYNONYMS:
        return
    known = optimum_tasks()
    if name not in known:
        listed = f": it is one of {', '.join(sorted(TASKS))}"
        raise UsageError(f"task {task} is unknown" + (did_you_mean(task, known) or listed))


def optimum_tasks() -> set[str]:
    """Import Optimum, and return its tasks and synonyms."""
    from optimum.exporters.tasks import TasksManager

    tasks = TasksManager.get_all_tasks()
    return {name for task in tasks for name in (task, *TasksManager.synonyms_for_task(task))}
