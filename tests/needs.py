"""Marks of tests that cannot run on every system."""

from __future__ import annotations

import os

import pytest

POSIX = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="it uses a shell, a terminal or limits, which Windows lacks"
)
