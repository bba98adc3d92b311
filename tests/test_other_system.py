"""What stands in for calls that Windows and macOS lack, on files of this system.

`make test-portable` runs other tests without those calls; here each is tried alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from modelexport_optimum.system import files, processes
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.system.locks import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER_SYSTEM = Path(__file__).parent / "other_system"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    """A file that holds the digits, open and read to its fourth."""
    (tmp_path / "digits").write_bytes(b"0123456789")
    descriptor = files.open_to_read(tmp_path / "digits")
    os.lseek(descriptor, 4, os.SEEK_SET)
    yield descriptor
    with contextlib.suppress(OSError):
        os.close(descriptor)


def test_reading_at_a_place_keeps_the_position(
    opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pread", raising=False)
    assert files.read_at(opened, 3, 7) == b"789"
    assert files.read_at(opened, 3, 20) == b""
    assert os.read(opened, 2) == b"45"


def test_link_on_the_way_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "model" / "folder"
    inside.mkdir(parents=True)
    (inside / "weights").write_bytes(b"own")
    (tmp_path / "model" / "linked").symlink_to("folder")
    (inside / "link").symlink_to("weights")
    for directories in (files._DIRECTORY, 0):
        monkeypatch.setattr(files, "_DIRECTORY", directories)
        descriptor = files.open_inside(tmp_path / "model", ["folder", "weights"])
        assert os.read(descriptor, 9) == b"own"
        os.close(descriptor)
        for parts in (["linked", "weights"], ["folder", "link"]):
            with pytest.raises(OSError) as raised:
                files.open_inside(tmp_path / "model", parts)
            assert raised.value.errno in (errno.ELOOP, errno.ENOTDIR)
        with pytest.raises(FileNotFoundError):
            files.open_inside(tmp_path / "model", ["folder", "nothing"])


def test_file_that_is_exchanged_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_DIRECTORY", 0)
    weights, secret = tmp_path / "weights", tmp_path / "secret"
    weights.touch()
    secret.touch()
    open_file = os.open

    def exchanged(path: Path, *args: int) -> int:
        weights.unlink()
        weights.symlink_to(secret)
        return open_file(path, *args)

    monkeypatch.setattr(os, "open", exchanged)
    with pytest.raises(OSError) as raised:
        files.open_inside(tmp_path, ["weights"])
    assert raised.value.errno == errno.ELOOP


def test_without_a_c_library_nothing_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr(files, "c_function", lambda _: None)
    assert not files.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "one").exists()


def test_directory_takes_the_name_of_an_empty_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def as_on_windows(source: Path, target: Path) -> None:
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        rename(source, target)

    monkeypatch.setattr(os, "rename", as_on_windows)
    for name in ("new", "empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OSError) as raised:
        files.rename_directory(tmp_path / "new", tmp_path / "full")
    assert raised.value.errno == errno.ENOTEMPTY
    files.rename_directory(tmp_path / "new", tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "full"}


WITH_OPEN_FILES = """
import os, sys
from pathlib import Path
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.system.files import open_to_read
from modelexport_optimum.system.locks import holding, lock
assert not hasattr(os, "pread") and not hasattr(os, "fork")
path = Path(sys.argv[1])
like = open_to_read(path)
try:
    path.replace(path.with_name("moved"))
except PermissionError:
    print("refused")
with holding(path.with_name("lock")) as held, replacing(path, like=like) as target:
    print(held, lock(path.with_name("lock")))
    os.write(target, b"new")
try:
    with replacing(path) as target:
        raise KeyError
except KeyError:
    print("given up")
print(path.read_bytes(), sorted(os.listdir(path.parent)))
"""


def test_files_that_keep_their_names_while_they_are_open(tmp_path: Path) -> None:
    """Locks and files that are replaced, as on Windows: nothing is left."""
    (tmp_path / "model").write_bytes(b"old")
    ran = subprocess.run(
        [sys.executable, "-c", WITH_OPEN_FILES, str(tmp_path / "model")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(OTHER_SYSTEM), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    said = ["refused", "True None", "given up", "b'new' ['model']"]
    assert ran.stdout.splitlines() == said, ran.stderr


def test_refusal_for_another_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelexport_optimum.errors import ModelExportError

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(ModelExportError, match="Permission denied"), replacing(tmp_path / "model"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; "
        "from modelexport_optimum.system.locks import lock; "
        "print(lock(Path(sys.argv[1])) is not None, flush=True); time.sleep(300)"
    )
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert lock(path) is None
        process.kill()
    held = lock(path)
    assert held is not None
    files.remove_and_close(path, held)
    assert not path.exists()


@pytest.mark.parametrize("groups", [True, False])
def test_group_is_killed_with_what_its_leader_started(
    groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its process group, or where there are none by looking for it."""
    if not groups:
        monkeypatch.delattr(os, "killpg", raising=False)
    elif not hasattr(os, "killpg"):
        pytest.skip("there are no groups")
    program = (
        "import subprocess, sys, time; "
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); "
        "print(inner.pid, flush=True); time.sleep(300)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        inner = psutil.Process(int(leader.stdout.readline()))
        processes.kill_group(leader.pid)
    deadline = time.monotonic() + 60
    while inner.is_running() and inner.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert leader.returncode != 0
    processes.kill_group(leader.pid)  # who is gone is no error


def test_memory_is_told() -> None:
    assert 2**20 < processes.release_memory() < 2**36


def test_endings_in_words() -> None:
    assert processes.ending(-signal.SIGTERM) == "its process was ended by SIGTERM"
    assert "was killed (SIGKILL)" in processes.ending(-9)
    assert processes.ending(0xC0000005) == "its process ended with exit status 3221225477"
