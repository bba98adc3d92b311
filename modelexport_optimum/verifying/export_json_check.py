"""The check of the graphs against export.json, which transformers' own exporter writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from modelexport_optimum.module_trees.export_json import NAME, read_components
from modelexport_optimum.verifying.dimensions import first_of

if TYPE_CHECKING:
    from modelexport_optimum.module_trees.export_json import Component
    from modelexport_optimum.verifying.exported_files import Exported


def check_export_json(exported: Exported) -> tuple[str, str] | None:
    """Check that the graphs match export.json; None if there is none."""
    components = read_components(exported.directory)
    if components is None:
        return None
    if not components:
        return "failed", f"{NAME} names no component: export again"
    problems = [problem for one in components for problem in _problems(exported, one)]
    if problems:
        return "failed", first_of(problems)
    classes = dict.fromkeys(one.architecture or one.file for one in components)
    return "ok", ", ".join(classes)


def _problems(exported: Exported, component: Component) -> list[str]:
    graph = exported.graphs.get(component.file)
    if graph is None:
        if component.file in exported.unreadable:
            return []
        return [f"{NAME} names {component.file}, which is missing: copy it next to that file"]
    problems = []
    for value in graph.inputs:
        described = component.tensors.get(value.name)
        if described is None or value.shape is None:
            continue
        dtype, rank = described
        if len(value.shape) != rank or _type_name(value.elem_type) not in (dtype, None):
            problems.append(
                f"{component.file} takes {value.name} as {_type_name(value.elem_type)} of rank "
                f"{len(value.shape)}, {NAME} says {dtype} of rank {rank}: export again"
            )
    return problems


def _type_name(elem_type: int) -> str | None:
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except KeyError:  # a type that came after this onnx
        return None
