"""Disks of their own: a few kilobytes, to be filled, and file systems that share blocks."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def mounted(directory: Path, size: str) -> Iterator[None]:
    """A file system of its own, which only root can have."""
    with _mounted(directory, ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]):
        yield


BLOCK_SHARING = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}
"""The file systems on which two files may have blocks in common, and how one is made."""


@contextmanager
def mounted_image(directory: Path, kind: str) -> Iterator[None]:
    """A file system of `BLOCK_SHARING` in a sparse file beside the directory."""
    program, *options = BLOCK_SHARING[kind]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    image = directory.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(320 * 2**20)  # mkfs.xfs makes none below 300 MB
    try:
        subprocess.run([program, *options, str(image)], check=True)
        with _mounted(directory, ["-t", kind, "-o", "loop", str(image)]):
            yield
    finally:
        image.unlink()


@contextmanager
def _mounted(directory: Path, arguments: list[str]) -> Iterator[None]:
    directory.mkdir()
    command = ["mount", *arguments, str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
