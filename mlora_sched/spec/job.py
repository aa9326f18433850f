"""`JobSpec`: the one description of a job, from YAML to the worker. It is never edited after submission."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator

from mlora_sched.errors import SpecError
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.data import DataSpec
from mlora_sched.spec.explain import explain
from mlora_sched.spec.limits import EarlyStoppingSpec, GuardsSpec, LimitsSpec, Metric
from mlora_sched.spec.objective import ObjectiveSpec, SftObjective
from mlora_sched.spec.override import Override, apply_overrides
from mlora_sched.spec.plain import LoraSpec
from mlora_sched.spec.routed import LoraMoeSpec
from mlora_sched.spec.training import TrainingSpec

_Document = TypeVar("_Document")

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_HALVES = 2
"""Of LoRAMoE's experts, each of which serves a task."""


class Priority(StrEnum):
    """Orders the jobs of one user."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class JobSpec(Frozen):
    """One fine-tuning job. Paths are as written, relative to the spec's file; whoever reads the files resolves them."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base_model: str | None = None
    adapter: AdapterSpec = LoraSpec()
    data: DataSpec
    objective: ObjectiveSpec = SftObjective()
    training: TrainingSpec = TrainingSpec()
    limits: LimitsSpec = LimitsSpec()
    guards: GuardsSpec = GuardsSpec()
    early_stopping: EarlyStoppingSpec | None = None
    priority: Priority = Priority.NORMAL
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("adapter", mode="before")
    @classmethod
    def _method_defaults_to_lora(cls, value: object) -> object:
        return {"method": "lora", **value} if isinstance(value, dict) else value

    @field_validator("data")
    @classmethod
    def _names_tasks_that_are_balanced(cls, value: DataSpec, info: ValidationInfo) -> DataSpec:
        adapter = info.data.get("adapter")
        if isinstance(adapter, LoraMoeSpec) and adapter.router_aux_loss_coef > 0 and len(value.tasks or ()) != _HALVES:
            has = "task_column is not set" if value.tasks is None else f"tasks has {len(value.tasks)} names"
            raise ValueError(
                f"{has}, and adapter.router_aux_loss_coef is {adapter.router_aux_loss_coef}: the balance of loramoe is "
                f"between two tasks; name the column and its two tasks, as in tasks: [knowledge, skill], or leave "
                f"router_aux_loss_coef out"
            )
        return value

    @field_validator("early_stopping")
    @classmethod
    def _is_evaluated(cls, value: EarlyStoppingSpec | None, info: ValidationInfo) -> EarlyStoppingSpec | None:
        data = info.data.get("data")
        if value is not None and value.metric is not Metric.LOSS and data is not None and data.validation is None:
            raise ValueError(
                f"metric {value.metric.value} needs data.validation, and there is none; set it (0.1, or the name of a "
                f"file), or write metric: loss, which is the training loss"
            )
        return value

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that travels with the job, as named in the spec (init_from contributes its two files)."""
        start = self.adapter.init_from
        adapter = () if start is None else tuple(f"{start.rstrip('/')}/{name}" for name in ADAPTER_FILES)
        return tuple(dict.fromkeys(self.data.files + adapter))


def parse_job(raw: object, where: str = "spec") -> JobSpec:
    """Validate a decoded YAML/JSON document.

    Raises:
        SpecError: names every wrong field, its value and the remedy, on separate lines.
    """
    if not isinstance(raw, dict):
        raise SpecError(
            f"{where}: a job spec is a mapping of keys such as name, adapter, data; got {type(raw).__name__}"
        )
    if "sweep" in raw:
        raise SpecError(
            f"{where}: sweep: stands for many jobs; only `submit` and `validate` take it here, leave it out"
        )
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(explain(error, raw, JobSpec, where)) from None


def load_job(path: Path, overrides: Iterable[Override] = ()) -> JobSpec:
    """Read a YAML spec, with some fields set otherwise.

    Raises:
        SpecError: the file is missing, is no YAML or is no valid spec.
    """
    return read_job(read_bytes(path), str(path), overrides)


def read_bytes(path: Path) -> bytes:
    """What a spec's file holds.

    Raises:
        SpecError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


def read_job(text: bytes, where: str, overrides: Iterable[Override] = ()) -> JobSpec:
    """Read a spec from the bytes of its YAML; `where` names them in errors about it. See `load_job`."""
    return check_document(text, where, overrides, parse_job)


def check_document(
    text: bytes, where: str, overrides: Iterable[Override], parse: Callable[[object, str], _Document]
) -> _Document:
    """Decode YAML, set some fields otherwise and have it parsed; what was set is blamed on `--set`.

    Raises:
        SpecError: it is no YAML, or what `parse` says.
    """
    from mlora_sched.spec.strict_yaml import load_yaml

    try:
        raw = load_yaml(text.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: is not YAML: {error}") from None
    given = tuple(overrides)
    try:
        return parse(apply_overrides(raw, given), where)
    except SpecError as error:
        raise SpecError("\n".join(_blamed(line, where, given) for line in error.message.splitlines())) from None


def _blamed(line: str, where: str, overrides: Iterable[Override]) -> str:
    """A complaint about what was set is one about `--set`, not about the file, which does not hold it."""
    fault = line.removeprefix(f"{where}: ")
    was_set = any(fault.startswith((f"{each.field}:", f"{each.field}.")) for each in overrides)
    return f"--set {fault}" if was_set else line


def local_files(spec: JobSpec, folder: Path) -> dict[str, Path]:
    """Where the files of a spec lie on this machine, by the name the spec uses; `folder` holds the spec's file.

    Raises:
        SpecError: files are missing or are no ordinary files; each is named with its field, one a line.
    """
    paths = {name: folder / Path(name).expanduser() for name in spec.files}
    lost = [
        f"{spec.name}: {_field_of(spec, name)}: {name}: {_fault(path)}"
        for name, path in paths.items()
        if not path.is_file()
    ]
    if lost:
        raise SpecError("\n".join(lost))
    return paths


def _fault(path: Path) -> str:
    """Why there is no ordinary file at this path."""
    if path.is_dir():
        return f"is a directory; name a file ({path})"
    return f"is no ordinary file ({path})" if path.exists() else f"no such file (looked for {path})"


def _field_of(spec: JobSpec, name: str) -> str:
    if name in spec.data.train:
        return "data.train"
    if name == spec.data.validation:
        return "data.validation"
    return "data.template" if name == spec.data.template_file else "adapter.init_from"
