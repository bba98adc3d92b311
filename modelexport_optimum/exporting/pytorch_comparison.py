"""Optimum's own comparison of the exported files with PyTorch, postponed to the end of the run.

Optimum compares right after it has written the files, in a separate session. Here the comparison
waits until the files are tagged and loaded for the check, and uses the sessions of the check.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import one_line
from modelexport_optimum.system.private_names import COMPARISON_WITH_PYTORCH, SESSION_OF_COMPARISON

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnxruntime


@dataclass(frozen=True)
class ComparisonWithPyTorch:
    """The result of the comparison of the outputs with PyTorch's.

    Attributes:
        status: "ok"; "differs" (by more than Optimum's own tolerance, which is only a warning);
            "failed" (by more than the requested tolerance, or in the shape, or the model did not
            run); "skipped".
        message: One line.
    """

    status: str
    message: str


@dataclass
class PendingComparison:
    """The postponed comparison of Optimum.

    Attributes:
        asked: Whether the user gave the tolerance.
        compare: Compares, and raises an error for a difference; None if there is nothing to
            compare.
        atol: The absolute tolerance, None if each file has its own.
        result: The result.
    """

    asked: bool = False
    compare: Callable[[], None] | None = None
    atol: float | None = None
    result: ComparisonWithPyTorch = field(
        default=ComparisonWithPyTorch("skipped", "Optimum did not compare with PyTorch")
    )

    @property
    def pending(self) -> bool:
        """Whether the comparison is still to be done."""
        return self.compare is not None

    def postpone(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Postpone Optimum's comparison until `make` is called."""
        # Looked up when it is called: this method replaces it now.
        self.compare = lambda: COMPARISON_WITH_PYTORCH.get()(*args, **kwargs)
        self.atol = kwargs.get("atol")

    def make(self, sessions: Mapping[Path, onnxruntime.InferenceSession]) -> None:
        """Compare once, on these sessions or on new ones, and release the PyTorch model."""
        compare, self.compare = self.compare, None
        if compare is None:
            return
        from optimum.exporters.error_utils import AtolError, OutputMatchError

        opened = {os.fspath(path): session for path, session in sessions.items()}
        create = SESSION_OF_COMPARISON.get()

        def session_of(path: str, *, providers: list[str], **options: Any) -> Any:  # noqa: ANN401
            if path in opened and providers == ["CPUExecutionProvider"]:
                return opened[path]
            return create(path, providers=providers, **options)

        try:
            with SESSION_OF_COMPARISON.replaced(session_of):
                compare()
        except (AtolError, OutputMatchError) as error:
            status = "failed" if self.asked else "differs"
            self.result = ComparisonWithPyTorch(status, one_line(error))
        except Exception as error:
            self.result = ComparisonWithPyTorch("failed", one_line(error))
        else:
            within = "" if self.atol is None else f" within {self.atol:g}"
            self.result = ComparisonWithPyTorch("ok", f"the outputs equal PyTorch's{within}")
