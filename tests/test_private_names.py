"""The names of other packages that they do not promise to keep: which are gone is said at once."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from modelexport_optimum import export
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.exporting.options import ExportOptions
from modelexport_optimum.system import packages, private_names
from modelexport_optimum.system.lean_imports import import_lean

PACKAGE = Path(private_names.__file__).parent.parent


def test_installed_versions_have_them_all() -> None:
    gone = {}
    for name in private_names.ALL:
        try:
            name.get()
        except ModelExportError as error:
            gone[f"{name.module}.{name.path}"] = str(error)
    assert private_names.ALL
    assert gone == {}


def test_replaced_functions_take_the_arguments_that_are_named_here() -> None:
    gone = {
        f"{name.module}.{name.path}": missing
        for name in private_names.ALL
        if name.arguments
        if (missing := set(name.arguments) - set(inspect.signature(name.get()).parameters))
    }
    assert gone == {}


def test_name_that_is_gone_is_told_with_the_versions_that_work() -> None:
    for module, path in (("optimum.utils", "Gone"), ("optimum.gone", "name")):
        name = private_names.PrivateName(module, path, "a test")
        said = rf"^optimum \d.* no longer has {module}\.{path}: pip install optimum==2\.1\.0 "
        with pytest.raises(ModelExportError, match=said):
            name.get()


def test_optimum_that_cannot_be_imported_is_told_with_the_versions_that_work() -> None:
    said = r"^Optimum does not work with .*gone.*: pip install .* transformers==4\.57\.6 "
    with pytest.raises(ModelExportError, match=said):
        import_lean("optimum.exporters.onnx.gone")


def pinned(file: str) -> dict[str, str]:
    text = (PACKAGE.parent / file).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", text, flags=re.MULTILINE))


def test_versions_that_work_are_those_of_the_constraints() -> None:
    assert {name.package for name in private_names.ALL} == set(packages.TESTED)
    for tested, file in (
        (packages.TESTED, "constraints.txt"),
        (packages.TESTED_WITHOUT_OPTIMUM, "constraints-transformers5.txt"),
    ):
        known = pinned(file)
        assert "transformers" in known
        assert {name: known.get(name, version) for name, version in tested.items()} == tested


NOT_OPTIONS = {
    "model_name_or_path": "the model",
    "output": "the staging directory",
    "token": "from the environment or the Hub's login, or of `export()`",
    "do_validation": "of `export()`: the comparison with PyTorch is made when the files are tagged",
    "custom_onnx_configs": "of `export()`: objects",
    "fn_get_submodels": "of `export()`: a function",
    "kwargs_shapes": "the sizes of example inputs",
}
"""Parameters of `main_export` that no option of the command is."""


def test_options_are_the_parameters_of_main_export() -> None:
    """One that Optimum lacks is ignored by it; one that is new is a choice to make here."""
    from optimum.exporters.onnx import main_export

    theirs = set(inspect.signature(main_export).parameters)
    sizes = set(private_names.DUMMY_SHAPES.get())
    own = set(inspect.signature(export).parameters) - {"options"}
    ours = set(ExportOptions().arguments()) - (own - theirs)
    assert ours - theirs - sizes == set()
    assert theirs - ours - set(NOT_OPTIONS) == set()


def test_replaced_name_is_put_back() -> None:
    name = private_names.LIBRARY_OF_MODEL
    before = name.get()
    with pytest.raises(ZeroDivisionError), name.replaced(staticmethod(lambda: "mine")):
        assert name.get()() == "mine"
        raise ZeroDivisionError
    assert name.get() == before


KNOWN_IMPORTS = {
    "from torch.utils._python_dispatch import TorchDispatchMode": "a base class, which a class "
    "names where it is defined",
}


def test_no_other_file_imports_what_begins_with_an_underscore() -> None:
    pattern = re.compile(
        r"^\s*(from (?!modelexport)[\w.]+ import .*\b_[a-z]|from (?!__)[\w.]*\._[a-z])"
    )
    found = [
        f"{file.relative_to(PACKAGE)}: {line.strip()}"
        for file in PACKAGE.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if pattern.match(line) and line not in KNOWN_IMPORTS
    ]
    assert found == []


KNOWN_ATTRIBUTES = {
    "_exit": "documented: the os module's",
    "_repr_html_": "documented: IPython's protocol",
    "_parameters": "the dictionary that a module's own zero is put into, which no function does",
    "_buffers": "the same of a buffer",
    "_version": "in private_names, asked of every tensor that leaves a call",
    "_schema": "of an operator of PyTorch, whose class does not have it, so no name can be asked",
    "_model_path": "of a session, which no function gives",
}


def test_no_other_file_reads_an_attribute_that_begins_with_an_underscore() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}: {node.attr}"
        for file in PACKAGE.rglob("*.py")
        if file.name != "private_names.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and re.match(r"_(?!_)", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        and node.attr not in KNOWN_ATTRIBUTES
    }
    assert found == set()


def test_ray_reads_what_we_set() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray._common import utils
    from ray._private.accelerators import accelerator

    assert accelerator.RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR == private_names.RAY_HIDE_GPUS
    assert utils.get_ray_address_file("/tmp/ray") == str(
        Path("/tmp", *private_names.RAY_CURRENT_CLUSTER)
    )
