"""Stand-ins for a model's class that fail on every provider but the CPU, each in its own way.

They are imported in another process, where `verify` runs those providers.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from optimum.onnxruntime import ORTModelForMaskedLM

if TYPE_CHECKING:
    from pathlib import Path


class _Broken(ORTModelForMaskedLM):
    @classmethod
    def from_pretrained(cls, directory: Path, *, provider: str, **options: Any) -> Any:
        model = ORTModelForMaskedLM.from_pretrained(directory, provider=provider, **options)
        if not provider.startswith("CPU"):
            model.__class__ = cls
        return model

    def forward(self, *args: Any, **inputs: Any) -> Any:
        self.fail()
        return super().forward(*args, **inputs)

    def fail(self) -> None:
        raise NotImplementedError


class Crashing(_Broken):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Throwing(_Broken):
    """As an exception in C++ that nobody catches."""

    def fail(self) -> None:
        os.write(2, b"terminate called after throwing an instance of 'std::runtime_error'\n")
        os.write(2, b"  what():  the device is gone\n")
        os.abort()


class Leaving(_Broken):
    def fail(self) -> None:
        os._exit(3)


class Exiting(_Broken):
    def fail(self) -> None:
        raise SystemExit(0)


class Hanging(_Broken):
    def fail(self) -> None:
        time.sleep(600)


class Raising(_Broken):
    def fail(self) -> None:
        name = next(node for node in ("/bert/embeddings/word_embeddings/Gather",))
        raise RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Gather "
            f"node. Name:'{name}' Status Message: /onnxruntime_src/onnxruntime/core/x.cc:12 "
            "onnxruntime::Status onnxruntime::F::g(const T&) const out of range\n"
        )


class Printing(_Broken):
    """It works, and prints to where `--json` prints."""

    def fail(self) -> None:
        print("something of its own")


class Wrong(_Broken):
    def forward(self, *args: Any, **inputs: Any) -> Any:
        answer = super(_Broken, self).forward(*args, **inputs)
        answer["logits"] = answer["logits"] * 1.5
        return answer


class NotANumber(_Broken):
    def forward(self, *args: Any, **inputs: Any) -> Any:
        answer = super(_Broken, self).forward(*args, **inputs)
        answer["logits"] = answer["logits"] * float("nan")
        return answer
