"""Marks of tests that cannot run on every system."""

from __future__ import annotations

import os

import pytest

POSIX = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="it needs what Windows lacks, such as a fork or a terminal"
)
