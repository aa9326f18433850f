"""What must hold for a submission to become a job, beyond the shape its models demand."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from mlora_sched.errors import NotFound, SpecError
from mlora_sched.memory.fit import Estimating, Sizes
from mlora_sched.memory.outlook import places_of
from mlora_sched.quotas import Use
from mlora_sched.server.expectation import fit_of
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.placement import Places, placed
from mlora_sched.spec.quota import QuotaKind
from mlora_sched.spec.redact import redact_values
from mlora_sched.spec.sweep import TrialSpec
from mlora_sched.store.jobs import JobStore


def served_base(spec: JobSpec, settings: DaemonSettings) -> str:
    """The name of the base that a spec means.

    Raises:
        NotFound: the daemon does not serve it.
        SpecError: the spec names none and the daemon serves several.
    """
    served = [base.name for base in settings.bases]
    if spec.base_model is None:
        if len(served) == 1:
            return served[0]
        raise SpecError(f"{spec.name}: base_model: is missing; this daemon serves {', '.join(served)}")
    if spec.base_model not in served:
        raise NotFound(
            f"{spec.name}: base_model: {spec.base_model}: is not served here; this daemon serves {', '.join(served)}: "
            f"write `--set base_model={served[0]}`" + (", or leave it out" if len(served) == 1 else "")
        )
    return spec.base_model


_LIKE_AN_ID = re.compile(r"[js]-[0-9a-f]+")


def check_name(spec: JobSpec) -> None:
    """A job is not called as another one, or a sweep, is by its id.

    Raises:
        SpecError: it is.
    """
    if _LIKE_AN_ID.fullmatch(spec.name):
        whose = "a sweep's" if spec.name.startswith("s") else "a job's"
        raise SpecError(f"{spec.name}: name: is written like {whose} id; choose another, such as {spec.name}-run")


MAX_SPEC_BYTES = 128 << 10
"""Largest spec in JSON: it travels to the worker in one message, and metadata is no place for data."""


def check_size(spec: JobSpec) -> None:
    """A spec is small.

    Raises:
        SpecError: it is not.
    """
    size = len(spec.model_dump_json())
    if size > MAX_SPEC_BYTES:
        raise SpecError(f"{spec.name}: has {size} bytes, more than {MAX_SPEC_BYTES}; shorten metadata or the file list")


MAX_SWEEP_BYTES = 4 << 20
"""Most bytes of all specs of a sweep's trials: one request makes hundreds, which are all kept, in memory too."""


def check_sweep_size(name: str, trials: Sequence[TrialSpec]) -> None:
    """The specs of a sweep's trials are small, each and together.

    Raises:
        SpecError: they are not.
    """
    total = 0
    for trial in trials:
        check_size(trial.spec)
        total += len(trial.spec.model_dump_json())
    if total > MAX_SWEEP_BYTES:
        raise SpecError(
            f"{name}: its {len(trials)} trials have {total} bytes in all, more than {MAX_SWEEP_BYTES}; "
            "shorten metadata or the file list, or make fewer trials"
        )


def without_secrets(spec: JobSpec) -> tuple[JobSpec, tuple[str, ...]]:
    """The spec as it is kept, and which entries of its metadata are not, since they look like secrets."""
    metadata, found = redact_values(spec.metadata)
    return spec.model_copy(update={"metadata": metadata}), tuple(f"metadata.{path}" for path in found)


def check_fits(
    spec: JobSpec, base: str, store: JobStore, settings: DaemonSettings, estimating: Estimating, owner: str
) -> None:
    """A job's adapter can sit on its base, and it fits on the device with the largest chunk that its spec allows, once
    the worker has told what there is.

    Of a base that is not loaded nothing is known: a job that does not fit fails when its base is.

    Raises:
        SpecError: it does not, whoever leaves; the message says what would make it fit.
        Refused: it alone holds more than its owner's quota allows.
    """
    status = store.worker_status()
    if status.base == base and status.shape is not None:
        _check_places(spec, places_of(status.shape, base))
    fit = fit_of(base, status, settings, estimating)
    if fit is None:
        return
    refusal = fit.refusal(spec, Sizes.of_spec(spec))
    if refusal is not None:
        raise SpecError(f"{spec.name}: {refusal}")
    device = Use(QuotaKind.DEVICE, store.quotas().of(owner).limit(QuotaKind.DEVICE), 0)
    device.demand_of_job(fit.needs(spec.adapter, Sizes.of_spec(spec)).resident)


def _check_places(spec: JobSpec, places: Places) -> None:
    try:
        placed(spec.adapter, places)
    except SpecError as error:
        raise SpecError(f"{spec.name}: {error.message}") from None


_MOST_ODD, _MOST_NAME = 10, 100


def check_files(
    name: str,
    wanted: Collection[str],
    files: Mapping[str, str],
    uploaded: Callable[[Collection[str]], Collection[str]],
) -> None:
    """Every file of a spec, and no other, has been uploaded by the caller.

    Args:
        name: of the job, or of the sweep. wanted: the files that it names.
        files: sha256 of those sent.
        uploaded: which of these sha256 are of files that the caller has uploaded; called once.

    Raises:
        SpecError: it is not so.
    """
    named, sent = set(wanted), set(files)
    if named != sent:
        odd = sorted(named ^ sent)
        told = ", ".join(file if len(file) <= _MOST_NAME else f"{file[:_MOST_NAME]}…" for file in odd[:_MOST_ODD])
        more = f" and {len(odd) - _MOST_ODD} more" if len(odd) > _MOST_ODD else ""
        raise SpecError(f"{name}: the files sent are not those the spec names; they differ in {told}{more}")
    there = uploaded(set(files.values()))
    for file, sha256 in files.items():
        if sha256 not in there:
            raise SpecError(f"{name}: {file}: the daemon has no file {sha256} of yours; upload it first")
