"""The names of other packages that they do not promise to keep: which are gone is said at once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system import private_names

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


def test_name_that_is_gone_is_told_with_the_package() -> None:
    for module, path in (("optimum.utils", "Gone"), ("optimum.gone", "name")):
        name = private_names.PrivateName(module, path, "a test")
        with pytest.raises(ModelExportError, match=rf"^optimum \d.* has no {module}\.{path} any"):
            name.get()


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
