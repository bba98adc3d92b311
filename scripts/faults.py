"""Let system calls of `tag`, `strip` and publishing fail, and kill them, at every place in turn.

strace lets one call of a run fail, or kills the run at it. After each fault every file must be
what it was or what it is to be, whole; the run must have ended well or with one ModelExportError;
and the next run must end as if nothing had been, with nothing left behind. Each run is a fork of
this process, so that nothing is imported for it.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.exporting.staging import publish, staging_directory
from modelexport_optimum.module_trees.module_tree import Module, ModuleTree
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRORS = {
    "openat": ("EIO", "ENOSPC", "EACCES"), "read": ("EIO",), "pread64": ("EIO",),
    "write": ("EIO", "ENOSPC"), "copy_file_range": ("EIO", "ENOSPC", "EXDEV"),
    "fsync": ("EIO", "ENOSPC"), "fchmod": ("EIO", "EPERM"), "fchown": ("EIO", "EPERM"),
    "flock": ("EIO", "ENOLCK"), "close": ("EIO",), "getdents64": ("EIO",),
    "fstat": ("EIO",), "newfstatat": ("EIO", "EACCES"), "stat": ("EIO",), "lstat": ("EIO",),
    "rename": ("EIO", "ENOSPC"), "renameat2": ("EIO", "EINVAL"), "unlink": ("EIO", "EACCES"),
    "unlinkat": ("EIO",), "mkdir": ("EIO", "ENOSPC"), "rmdir": ("EIO",),
}  # fmt: skip
"""The system calls to let fail, and what each says then."""

SAID, WELL, WRONG = 1, 0, 3
"""How a run ends: with a ModelExportError of one line, well, or with anything else."""

RUN_SECONDS = 60

TREE = ModuleTree({path: Module(path, f"m.{path.upper() or 'Root'}", path) for path in ("", "a")})

Contents = dict[str, bytes]


def contents(directory: Path) -> Contents:
    """Return the bytes of every file below a directory, by its path."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def write(directory: Path, files: Contents) -> None:
    """Make the directory anew, with these files."""
    shutil.rmtree(directory, ignore_errors=True)
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def untagged(floats: int) -> Contents:
    """Return the contents of a directory: two models, one with a branch, and a config.json."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    zeros = np.zeros(floats, np.float32).tobytes()
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, [floats], zeros, raw=True),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
    ]
    add = helper.make_node("Add", ["x", "w"], ["y"], name="/a/Add")
    branch = helper.make_graph([add], "branch", [], [y])
    both = {"then_branch": branch, "else_branch": branch}
    files = {"config.json": b'{\n  "model_type": "bert"\n}\n'}
    choice = helper.make_node("If", ["true"], ["y"], name="/If", **both)
    for name, node in (("one.onnx", add), ("two.onnx", choice)):
        graph = helper.make_graph([node], "main", [x], [y], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        files[name] = model.SerializeToString()
    return files


@dataclass
class Case:
    """What is run.

    Attributes:
        name: What it is called.
        before: The directory before the run.
        act: The run, in a directory.
        after: The directory after it.
        at_once: All of the files change in one step.
    """

    name: str
    before: Contents
    act: Callable[[Path], object]
    after: Contents = field(default_factory=dict)
    at_once: bool = False


def published(directory: Path, *, overwrite: bool) -> None:
    """Do what an export does beside its work."""
    with staging_directory(directory / "out") as staging:
        try:
            (staging / "config.json").write_bytes(b"new")
            (staging / "model.onnx").write_bytes(b"new")
        except OSError as error:  # the exporter's; `export` tells it
            raise ModelExportError(str(error)) from error
        publish(staging, directory / "out", overwrite=overwrite)


def cases(work: Path, floats: int) -> list[Case]:
    """Return the runs, each with what it makes when nothing fails."""
    plain = untagged(floats)
    old = {"out/config.json": b"old", "out/model.onnx": b"old", "out/more": b"old"}
    found = [
        Case("tag", plain, lambda directory: htp.tag(directory, model=TREE)),
        Case("strip", {}, htp.strip),
        Case("publish", {"x": b""}, lambda d: published(d, overwrite=False), at_once=True),
        Case("publish over", old, lambda d: published(d, overwrite=True), at_once=True),
    ]
    for case in found:
        if case.name == "strip":
            case.before = found[0].after
        write(work, case.before)
        case.act(work)  # imports what it imports
        case.after = contents(work)
    return found


def forked(case: Case, directory: Path) -> tuple[int, int]:
    """Start a run that waits for its pipe to be closed; return its process and the pipe."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(reading)
        return process, writing
    status = WRONG
    try:
        os.close(writing)
        select.select([reading], [], [])
        case.act(directory)
        status = WELL
    except ModelExportError as error:
        status = SAID if len(str(error).splitlines()) == 1 else WRONG
    except BaseException as error:  # whatever it is, the count says so
        os.write(2, f"{case.name}: {error!r}\n".encode())
    finally:
        os._exit(status)


def traced(case: Case, directory: Path, *expressions: str) -> tuple[int, str]:
    """Run a case under strace.

    Returns:
        Its exit status, or minus the signal that ended it; and what strace wrote.
    """
    process, pipe = forked(case, directory)
    with tempfile.NamedTemporaryFile("r") as log:
        options = [part for expression in expressions for part in ("-e", expression)]
        strace = subprocess.Popen(
            ["strace", "-p", str(process), "-o", log.name, *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert strace.stderr is not None
        line = strace.stderr.readline()
        if "attached" not in line:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise SystemExit(f"strace cannot trace here: {line.strip()}")
        os.close(pipe)
        status = ended(process)
        strace.communicate()
        return status, log.read()


def ended(process: int) -> int:
    """Wait for a run; one that hangs is an error."""
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return WRONG


def wrong(case: Case, directory: Path, status: int) -> str:
    """Return what a run left that it must not, "" if nothing; the next run is tried, too."""
    found = contents(directory)
    if status not in (WELL, SAID, -signal.SIGKILL):
        return f"it ended with {status}"
    if status == WELL and {name: found.get(name) for name in case.after} != case.after:
        return "it said that all is well, and it is not"
    visible = {name: data for name, data in found.items() if not name.startswith(".")}
    aside = sorted({name.split("/")[0] for name in found if ".old-" in name})
    if case.at_once and visible not in (case.before, case.after) and not aside:
        return f"its files are mixed: {sorted(visible)}"
    for name in {*case.before, *case.after}:
        if not case.at_once and visible.get(name) not in (case.before[name], case.after[name]):
            return f"{name} is lost or torn"
    if aside:  # no way to swap two names, and killed between two renames: nothing is lost
        write(directory, case.before)
    case.act(directory) if visible != case.after or not case.at_once else published_again(directory)
    left = contents(directory)
    if left != case.after:
        return f"the next run leaves {sorted(set(left) - set(case.after))}"
    return ""


def published_again(directory: Path) -> None:
    """Do the next export to an output that is there."""
    with staging_directory(directory / "out"):
        pass


def calls(case: Case, directory: Path) -> Counter[str]:
    """Tell how often a run calls each system call."""
    write(directory, case.before)
    status, log = traced(case, directory, f"trace={','.join(f'?{name}' for name in ERRORS)}")
    assert status == WELL, log
    return Counter(line.partition("(")[0] for line in log.splitlines() if "(" in line)


def faults(counts: Counter[str], every: int) -> Iterator[tuple[str, str]]:
    """Yield the system call and strace's expression of each fault, every so many-th of them."""
    number = 0
    for name, count in sorted(counts.items()):
        for nth in range(1, count + 1):
            for fault in (*(f"error={error}" for error in ERRORS.get(name, ())), "signal=KILL"):
                number += 1
                if number % every == 0:
                    yield name, f"inject={name}:{fault}:when={nth}"


def random_kills(case: Case, directory: Path, count: int, seconds: float) -> Iterator[str]:
    """Kills runs at random moments, and yields what is wrong after each."""
    generator = random.Random(0)
    for _ in range(count):
        write(directory, case.before)
        process, pipe = forked(case, directory)
        os.close(pipe)
        time.sleep(generator.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        yield wrong(case, directory, ended(process))


def main() -> int:
    """Print how often each system call failed and how the runs ended; 1 if any went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="try every so many-th fault alone")
    parser.add_argument("--kills", type=int, default=100, help="kills at random, of each run")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        print("faults: strace is not installed (apt-get install strace): nothing was tried")
        return 2
    console = Console(width=100)
    table = Table("run", "system call", "calls", "faults", "said", "no harm", "killed", "wrong")
    problems = []
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "work"
        for case in cases(directory, floats=100_000):
            counts = calls(case, directory)
            results: dict[str, Counter[str]] = {}
            for call, expression in faults(counts, options.every):
                write(directory, case.before)
                status, _ = traced(case, directory, f"trace={call}", expression)
                problem = wrong(case, directory, status)
                kind = {WELL: "no harm", SAID: "said"}.get(status, "killed")
                results.setdefault(call, Counter())["wrong" if problem else kind] += 1
                if problem:
                    problems.append(f"{case.name}, {expression}: {problem}")
            for call, result in results.items():
                row = [result[kind] for kind in ("said", "no harm", "killed", "wrong")]
                table.add_row(case.name, call, *map(str, (counts[call], sum(row), *row)))
                total.update(result)
        for case in cases(directory, floats=5_000_000)[:2]:
            write(directory, case.before)
            start = time.perf_counter()
            case.act(directory)
            seconds = 1.2 * (time.perf_counter() - start)
            found = list(random_kills(case, directory, options.kills, seconds))
            bad = [problem for problem in found if problem]
            problems += [f"{case.name}, killed at random: {problem}" for problem in bad]
            row = (len(found), 0, 0, len(found) - len(bad), len(bad))
            table.add_row(case.name, "at random", "", *map(str, row))
            total.update({"at random": len(found), "wrong": len(bad)})
    console.print(table)
    errors = total["said"] + total["no harm"]
    console.print(
        f"{errors} calls that failed, {total['killed']} kills at a call, "
        f"{total['at random']} kills at random: {len(problems)} wrong"
    )
    for problem in problems:
        console.print(problem, markup=False, highlight=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
