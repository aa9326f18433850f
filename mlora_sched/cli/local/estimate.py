"""`estimate`: how much memory jobs will take, from a base's config alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import SIZE, json_option
from mlora_sched.cli.specs import read_spec, spec_arguments
from mlora_sched.environment import prepare_process
from mlora_sched.errors import SpecError, UserError
from mlora_sched.memory.fit import Sizes
from mlora_sched.settings import BaseRef, parse_base
from mlora_sched.spec.numerics import Quantize
from mlora_sched.spec.override import Override
from mlora_sched.spec.placement import placed
from mlora_sched.spec.worker_config import WorkerConfig

if TYPE_CHECKING:
    from mlora_sched.memory.hollow import HollowBase
    from mlora_sched.memory.outlook import Forecast, Outlook, Traced, Wanted
    from mlora_sched.spec.memory import BaseShape
    from mlora_sched.spec.placement import Places


@click.command()
@spec_arguments
@click.option("--base", required=True, metavar="[NAME=]DIR|CONFIG|REPO[@REV]", help="The base, or its config.json.")
@click.option("--device-memory", type=SIZE, help="What the daemon may use of the device, base included: 80GiB.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--quantize", type=click.Choice(["none", "nf4"]), default="none", show_default=True, help="Of the base.")
@click.option("--checkpoint-activations", is_flag=True, help="Keep less for backward and compute it again.")
@click.option("--pack-tokens", type=click.IntRange(min=64), default=2048, show_default=True, help="Most of one pack.")
@click.option(
    "--memory-margin",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of the device that is kept free.",
)
@click.option("--trace", "traced", is_flag=True, help="Also run each job's largest chunk without numbers and compare.")
@json_option
def estimate(
    specs: tuple[Path, ...],
    overrides: tuple[Override, ...],
    base: str,
    device_memory: int | None,
    dtype: str,
    quantize: Quantize,
    checkpoint_activations: bool,
    pack_tokens: int,
    memory_margin: float,
    traced: bool,
    as_json: bool,
) -> None:
    """Tell how much memory jobs will take, and how many fit on a device.

    Needs no daemon, no data and no weights: of the base only its config is read.
    """
    jobs = [read_spec(path, overrides) for path in specs]
    ref = base_or_config(base)
    config = WorkerConfig.model_validate(
        {
            "base_name": ref.name,
            "base": ref.location,
            "dtype": dtype,
            "quantize": quantize,
            "checkpoint_activations": checkpoint_activations,
            "pack_tokens": pack_tokens,
            "memory_budget": device_memory,
            "memory_margin": memory_margin,
        }
    )
    from mlora_sched.cli.local.estimate_tables import print_outlook
    from mlora_sched.memory.outlook import Wanted

    outlook = _look(config, [Wanted(str(job.path), job.spec) for job in jobs], traced)
    if as_json:
        print_json(outlook)
    else:
        print_outlook(outlook)


def base_or_config(text: str) -> BaseRef:
    """As `parse_base`, but the path of a config's own file is taken, too; its directory's name is then the base's.

    Raises:
        UserError: the name is unusable, or a path was written where nothing is.
    """
    name, _, path = ("", "", text) if Path(text).expanduser().is_file() else text.rpartition("=")
    file = Path(path).expanduser()
    if not file.is_file():
        if file.suffix == ".json":
            raise UserError(f"--base {text}: {file} is no file; name a base's directory, or its config.json")
        return parse_base(text)
    folder = file.resolve().parent
    return BaseRef(name=parse_base(f"{name or folder.name}={folder}").name, location=str(file.resolve()))


def _look(config: WorkerConfig, jobs: list[Wanted], traced: bool) -> Outlook:
    """Read the base's config and work everything out."""
    prepare_process()  # before torch is loaded, by the imports below
    from mlora_sched.memory.outlook import Forecast, Outlook, places_of
    from mlora_sched.model.base import load_config

    described = load_config(config.base_name, config.base)
    shape = _shape(config, described)
    _check(jobs, places_of(shape, config.base_name, described.model_type))
    forecast = Forecast(shape, config.pack_tokens, config.memory_margin, config.memory_budget)
    steps = _trace(config, described, jobs, forecast) if traced else [None] * len(jobs)
    return Outlook(
        base=config.base_name,
        weights=shape.weights,
        dtype=config.dtype,
        quantize=config.quantize,
        checkpoint_activations=config.checkpoint_activations,
        pack_tokens=config.pack_tokens,
        margin=config.memory_margin,
        device=forecast.device,
        jobs=tuple(forecast.job(job, step) for job, step in zip(jobs, steps, strict=True)),
        together=forecast.together([job.spec for job in jobs]),
    )


def _shape(config: WorkerConfig, described: Any) -> BaseShape:
    import torch

    from mlora_sched.data.pack import bucket_ladder
    from mlora_sched.memory.profile import profile_base
    from mlora_sched.model.base import telling_of
    from mlora_sched.model.support import check_config

    check_config(described, config.base_name)
    with telling_of(config.base_name, config.base):  # transformers may know no decoder of this architecture
        return profile_base(
            described,
            getattr(torch, config.dtype),
            quantize=config.quantize,
            recompute=config.checkpoint_activations,
            buckets=bucket_ladder(config.pack_tokens),
            name=config.base_name,
        )


def _check(jobs: Sequence[Wanted], places: Places) -> None:
    """Refuse adapters that cannot sit on the base; every one is named."""
    faults = []
    for job in jobs:
        try:
            placed(job.spec.adapter, places)
        except SpecError as error:
            faults.append(f"{job.file}: {error.message}")
    if faults:
        raise SpecError("\n".join(faults))


def _trace(config: WorkerConfig, described: Any, jobs: Sequence[Wanted], forecast: Forecast) -> list[Traced]:
    """The step of every job's largest chunk, of rows as long as they may be."""
    import torch

    from mlora_sched.memory.hollow import hollow_base

    hollow = hollow_base(
        described,
        getattr(torch, config.dtype),
        name=config.base_name,
        quantize=config.quantize,
        recompute=config.checkpoint_activations,
    )
    return [_traced(hollow, job, forecast) for job in jobs]


def _traced(hollow: HollowBase, job: Wanted, forecast: Forecast) -> Traced:
    from mlora_sched.data.pack import bucket_for
    from mlora_sched.memory.outlook import Traced
    from mlora_sched.memory.trace import Chunked, plan_of, trace

    adapter, sizes = job.spec.adapter, Sizes.of_spec(job.spec)
    whole, rest = divmod(sizes.chunk, sizes.longest)
    chunk = Chunked(adapter, (sizes.longest,) * whole + (rest,) * (rest > 0))
    rows = bucket_for(chunk.tokens, forecast.buckets)
    buckets = forecast.buckets if rows is not None else (*forecast.buckets, chunk.tokens)
    seen = trace(hollow, [chunk], buckets)
    plan = plan_of([chunk], chunk.tokens if rows is None else rows)
    held = forecast.formula.job(adapter).resident
    return Traced(traced=seen.jobs + seen.pack, estimated=held + forecast.pack(plan))
