"""Private names of other packages that are used here, each with its reason.

A name is looked up when it is used. `tests/test_private_names.py` reports the names that the
installed versions no longer have. If a user has such a version, the error is one line, with the
versions that work.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.packages import installed_version, no_optimum, not_installed, tested

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class PrivateName:
    """A name of another package.

    Using it with a version that no longer has it raises a ModelExportError that says so.

    Attributes:
        module: The module that has it.
        path: Its name there, or that of a class and one of its attributes.
        reason: Its use, and why no public name serves.
        arguments: The arguments that are used here, for the test.
    """

    module: str
    path: str
    reason: str
    arguments: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        """The distribution that contains it."""
        if self.module.startswith(("optimum.exporters.onnx", "optimum.onnxruntime")):
            return "optimum-onnx"
        return self.module.partition(".")[0]

    def get(self) -> Any:  # noqa: ANN401
        """Return the object."""
        owner, name = self._owner_and_name()
        return getattr(owner, name)

    def of(self, instance: object, default: Any = None) -> Any:  # noqa: ANN401
        """Return the attribute of this name of an object that may have it."""
        return getattr(instance, self.path.rpartition(".")[2], default)

    def put(self, value: object) -> None:
        """Replace it."""
        setattr(*self._owner_and_name(), value)

    @contextlib.contextmanager
    def replaced(self, value: object) -> Iterator[None]:
        """Replace it for the block."""
        owner, name = self._owner_and_name()
        original = inspect.getattr_static(owner, name)
        setattr(owner, name, value)
        try:
            yield
        finally:
            setattr(owner, name, original)

    def _missing(self) -> str:
        return no_optimum() if self.package.startswith("optimum") else not_installed(self.package)

    def _owner_and_name(self) -> tuple[Any, str]:
        *outer, name = self.path.split(".")
        try:
            owner = importlib.import_module(self.module)
            for part in outer:
                owner = getattr(owner, part)
            getattr(owner, name)
        except (ModuleNotFoundError, AttributeError) as error:
            version = installed_version(self.package)
            if version is None:
                raise ModelExportError(self._missing()) from error
            raise ModelExportError(
                f"{self.package} {version} no longer has {self.module}.{self.path}: "
                f"{tested(self.package)}"
            ) from error
        return owner, name


# --- Optimum --------------------------------------------------------------------------------------

EXPORT_OF_LOADED_MODEL = PrivateName(
    "optimum.exporters.onnx.__main__",
    "onnx_export_from_model",
    "`main_export` loads the model and calls this by its name in that module. Replaced, so that "
    "the modules of the very model that is converted are known; main_export gives the model to "
    "nobody.",
    ("model", "output", "task", "atol", "preprocessors"),
)
TOKENIZER_LOADER = PrivateName(
    "optimum.exporters.onnx.__main__",
    "AutoTokenizer",
    "Where a text model has no padding token, `main_export` loads the tokenizer by this name in "
    "that module, and does not pass `trust_remote_code` on. Replaced by one that does.",
)
COMPARISON_WITH_PYTORCH = PrivateName(
    "optimum.exporters.onnx.convert",
    "validate_models_outputs",
    "Called at the end of a conversion, where its error would take the files away that are "
    "written. Replaced, so that it is called when the files are tagged, and a failed comparison is "
    "a result and not the end.",
    ("atol",),
)
SESSION_OF_COMPARISON = PrivateName(
    "optimum.exporters.onnx.convert",
    "PickableInferenceSession",
    "The session that the comparison opens for a file. Replaced by the one that the check has "
    "opened.",
)
MENDING_OF_AXES = PrivateName(
    "optimum.exporters.onnx",
    "OnnxConfig.fix_dynamic_axes",
    "Loads each file that was exported into ONNX Runtime, only to see whether an axis of its "
    "outputs has a name that Optimum does not know. Replaced, so that the file's header is asked "
    "first.",
)
LOADING_OF_FILES = PrivateName(
    "optimum.exporters.onnx.convert",
    "onnx",
    "The package with which each file that was exported is loaded, all its weights, only to see "
    "whether it has some beside it. Replaced, so that the file's header is asked first.",
)
CONVERSION_OF_MODEL = PrivateName(
    "optimum.exporters.onnx.convert",
    "onnx_export_from_model",
    "Takes a model into the parts that become files. Replaced where PyTorch is to run these parts, "
    "so that the whole model that they are parts of is known.",
    ("model",),
)
EXPORT_OF_PARTS = PrivateName(
    "optimum.exporters.onnx.convert",
    "export_models",
    "Is given the parts, with the configuration of each. Replaced where PyTorch is to run them and "
    "nothing is exported; nothing public gives all parts of all libraries.",
    ("models_and_onnx_configs", "output_names", "input_shapes", "model_kwargs"),
)
LIBRARY_OF_MODEL = PrivateName(
    "optimum.exporters.tasks",
    "TasksManager.infer_library_from_model",
    "Tells the library of a model in memory by the module that defines its class, which is the "
    "user's own for a class derived from one of transformers'. Replaced by what its bases tell.",
)
DUMMY_SHAPES = PrivateName(
    "optimum.utils",
    "DEFAULT_DUMMY_SHAPES",
    "The names that the exporter takes for sizes of its example inputs. It ignores any other, so "
    "that a mistyped one has to be refused here.",
)
PARTS_OF_MODEL = PrivateName(
    "optimum.exporters.onnx.utils",
    "_get_submodels_and_onnx_configs",
    "Which parts of a model are exported, each with its example inputs and patches. The public "
    "functions around it write files.",
    (
        "model",
        "task",
        "monolith",
        "custom_onnx_configs",
        "custom_architecture",
        "_variant",
        "library_name",
    ),
)
DIFFUSION_CLASS = PrivateName(
    "optimum.onnxruntime.modeling_diffusion",
    "_get_ort_class",
    "The class with which `ORTDiffusionPipeline` would load a pipeline, which is wanted before "
    "it is loaded, to give its sessions options.",
)
DIFFUSERS_AVAILABLE = PrivateName(
    "optimum.utils.import_utils",
    "_diffusers_available",
    "Whether diffusers is installed, which the exporter's modules ask as they are imported: they "
    "import it then, for models that are no pipelines, too. Replaced while they are imported.",
)
TASKS_OF_DIFFUSERS = PrivateName(
    "optimum.exporters.tasks",
    "TasksManager._DIFFUSERS_TASKS_TO_MODEL_MAPPINGS",
    "The pipelines of each task, which stay empty where diffusers was not imported. Filled in when "
    "it is needed after all.",
)
COMMON_OUTPUTS = PrivateName(
    "optimum.exporters.onnx",
    "OnnxConfig._TASK_TO_COMMON_OUTPUTS",
    "The outputs that the models of a task have in common, by which a graph of an unknown model "
    "type is told. The public `outputs` is that of one model's configuration.",
)

# --- transformers ---------------------------------------------------------------------------------

SKLEARN_AVAILABLE = PrivateName(
    "transformers.utils.import_utils",
    "_sklearn_available",
    "Whether scikit-learn is installed, which the module of assisted generation asks as it is "
    "imported, and then imports it. Replaced while it is imported.",
)
SCIPY_AVAILABLE = PrivateName(
    "transformers.utils.import_utils",
    "_scipy_available",
    "The same of SciPy, which the losses of models that detect objects are made with.",
)
EMPTY_WEIGHTS = PrivateName(
    "transformers.integrations.accelerate",
    "init_empty_weights",
    "Makes a model without memory for its weights as `from_pretrained` does; no public function "
    "has it. Gone in transformers 5.",
)
NO_INITIALIZATION = PrivateName(
    "transformers.modeling_utils",
    "no_init_weights",
    "Leaves out the random numbers of weights that nobody looks at, as `from_pretrained` does. In "
    "`transformers.initialization` since transformers 5.",
)
CLASS_OF_REMOTE_CODE = PrivateName(
    "transformers.dynamic_module_utils",
    "get_class_from_dynamic_module",
    "The class that a model's own code defines, where that code was trusted. `AutoModel` loads "
    "weights with it.",
)

AUTO_CLASS = PrivateName(
    "transformers.models.auto.auto_factory",
    "_BaseAutoModelClass",
    "The base of AutoModel and its like, by which the loaders that a config.json names are told "
    "from other classes.",
)
CLASSES_OF_AUTO_CLASS = PrivateName(
    "transformers",
    "AutoModel._model_mapping",
    "The classes that an auto class loads, by the class of the configuration. The public mappings "
    "(`MODEL_MAPPING`) are named by the task, and not known to the auto class.",
)
CONSTRUCTION_FROM_CONFIG = PrivateName(
    "transformers",
    "PreTrainedModel._from_config",
    "Makes a model of a class from its configuration, with the settings of attention and type that "
    "`from_pretrained` gives it. `AutoModel.from_config` calls it.",
)

# --- PyTorch and the Hub --------------------------------------------------------------------------

NAMES_OF_SCOPES = PrivateName(
    "torch.onnx._internal.torchscript_exporter.utils",
    "_setup_trace_module_map",
    "Gives each module the name of the scope that its calls open. Followed by one that puts the "
    "module's number in the place of its class, which no name in the file is made of: nothing "
    "else says which module made a node.",
)
NAMING_OF_NODES = PrivateName(
    "torch._C",
    "_jit_pass_onnx_assign_scoped_names_for_node_and_value",
    "Names the nodes of a traced graph after their scopes, the last moment at which a node still "
    "has its scope. Followed by a look at each.",
)
NAMES_OF_MODULES = PrivateName(
    "torch.jit._trace",
    "_trace_module_map",
    "The name of each module's scope while a model is traced, which the tracer reads. See above.",
)
VERSION_OF_TENSOR = PrivateName(
    "torch",
    "Tensor._version",
    "Counts what was written to a tensor in place: one that was written to is another value.",
)
STORAGE_OF_TENSOR = PrivateName(
    "torch",
    "UntypedStorage._cdata",
    "Tells a storage from every other, that of an empty tensor too: `data_ptr` is 0 for those.",
)
CHECK_OF_REPOSITORY_NAME = PrivateName(
    "huggingface_hub.utils",
    "validate_repo_id",
    "What can be a name on the Hub. Functions that are documented check it only when they ask "
    "the Hub.",
)

# --- Typer ----------------------------------------------------------------------------------------

COMPLETION_SCRIPTS = PrivateName(
    "typer._completion_shared",
    "_completion_scripts",
    "What `--install-completion` writes, by shell. That of zsh only registers itself where zsh "
    "runs it for the first time, so that the first Tab of a shell offers nothing: one line is "
    "changed.",
)

ALL = [name for name in tuple(globals().values()) if isinstance(name, PrivateName)]
"""All of them, for the test."""

# --- Ray: settings that its documentation does not have -------------------------------------------

RAY_HIDE_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""If this is 1 in a task's environment, Ray hides the GPUs from a task that requests none; by
default it does not (`ray/_private/accelerators/accelerator.py`)."""

RAY_OOM_RETRIES = "RAY_task_oom_retries"
"""How often Ray runs a task again after its memory monitor killed it: without end, by default
(`src/ray/common/ray_config_def.h`)."""

RAY_CURRENT_CLUSTER = ("ray", "ray_current_cluster")
"""The file below RAY_TMPDIR, or /tmp, that has the address of the cluster that was last started
on this machine: `ray.init` reads it for the address "auto" (`ray/_common/utils.py`)."""
