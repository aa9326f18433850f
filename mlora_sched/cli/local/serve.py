"""`serve`: start the training daemon and stay until it is told to stop."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click
from pydantic import ValidationError

from mlora_sched.cli.remote.options import DURATION, SIZE
from mlora_sched.cli.style import say
from mlora_sched.client import SOCKET_VARIABLE, default_socket
from mlora_sched.daemon.lifecycle import run_daemon
from mlora_sched.errors import UserError
from mlora_sched.sched.policies import policy_names
from mlora_sched.server.tcp import is_loopback
from mlora_sched.settings import DaemonSettings, parse_base, parse_listen, parse_weights
from mlora_sched.spec.explain import explain
from mlora_sched.store.records import WorkerStatus
from mlora_sched.worker.local import LocalWorker, Role


@click.command()
@click.option(
    "--base",
    "bases",
    multiple=True,
    required=True,
    metavar="NAME=DIR|REPO[@REV]",
    help="Base to serve; several in turn.",
)
@click.option(
    "--base-slice",
    type=DURATION,
    default=600.0,
    show_default="10m",
    help="How long one of several bases stays loaded while jobs wait for another.",
)
@click.option(
    "--state", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory of the daemon's own."
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=default_socket,
    show_default="the user's own",
    help=f"Where to answer; else {SOCKET_VARIABLE}.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N", help="Where to train.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--quantize", type=click.Choice(["none", "nf4"]), default="none", show_default=True, help="Of the base.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads of the worker; 0 for all cores.")
@click.option("--pack-tokens", type=click.IntRange(min=64), default=2048, show_default=True, help="Most of one pack.")
@click.option(
    "--pack-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Most time of one pack, as far as it is known beforehand.",
)
@click.option("--checkpoint-activations", is_flag=True, help="Keep less for backward and compute it again.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the base's row-wise pieces.")
@click.option("--memory-budget", type=SIZE, help="Most memory of the device, base included, such as 20GiB.")
@click.option(
    "--memory-margin",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of it that is kept free.",
)
@click.option("--host-memory", type=SIZE, help="Of the host, for jobs that wait (GPU: half of it).")
@click.option("--disk-reserve", type=SIZE, help="Of the disk, kept free (2GiB, or 5 % of a small one).")
@click.option(
    "--checkpoint-every",
    type=DURATION,
    default=60.0,
    show_default="1m",
    help="Save every job so often, so that a crash costs no more.",
)
@click.option("--checkpoint-steps", type=click.IntRange(min=1), help="And when it has made so many steps since.")
@click.option(
    "--worker-silence",
    type=DURATION,
    default=60.0,
    show_default="1m",
    help="End a worker without signs of life for so long.",
)
@click.option(
    "--worker-hang", type=DURATION, default=900.0, show_default="15m", help="End one that has not got on for so long."
)
@click.option("--idle-unload", type=DURATION, help="Free the device after so long without jobs, such as 15m.")
@click.option(
    "--drain-time",
    type=DURATION,
    default=30.0,
    show_default="30s",
    help="How long jobs may take to save themselves, without progress, at the end.",
)
@click.option("--keep-artifacts", type=DURATION, help="Remove adapters and checkpoints so long after a job's end.")
@click.option(
    "--keep-uploads",
    type=DURATION,
    default=7 * 86_400.0,
    show_default="7d",
    help="Remove uploads and cached tokens that no live job needs after so long without use.",
)
@click.option(
    "--max-jobs", type=click.IntRange(min=1), default=64, show_default=True, help="Most jobs that train at once."
)
@click.option("--socket-group", metavar="GROUP", help="Let the members of this Unix group connect, too.")
@click.option("--admin-group", metavar="GROUP", help="Members of this Unix group are administrators, too.")
@click.option("--listen", metavar="HOST:PORT", help="Answer over TCP as well, to tokens (`admin token create`).")
@click.option(
    "--allow-host", "allow_hosts", multiple=True, metavar="NAME", help="A name by which it may be asked over TCP."
)
@click.option(
    "--min-slice",
    type=DURATION,
    default=10.0,
    show_default="10s",
    help="How long a job that trains keeps its place at least.",
)
@click.option(
    "--weight", "weights", multiple=True, metavar="USER=WEIGHT", help="Twice the weight, twice the work; 1 by default."
)
@click.option("--policy", type=click.Choice(policy_names()), default="fair", show_default=True, help="Who trains next.")
def serve(
    bases: tuple[str, ...],
    base_slice: float,
    state: Path,
    socket: Path,
    device: str,
    dtype: str,
    quantize: str,
    threads: int,
    pack_tokens: int,
    pack_seconds: float,
    checkpoint_activations: bool,
    compiled: bool,
    memory_budget: int | None,
    memory_margin: float,
    host_memory: int | None,
    disk_reserve: int | None,
    checkpoint_every: float,
    checkpoint_steps: int | None,
    worker_silence: float,
    worker_hang: float,
    idle_unload: float | None,
    drain_time: float,
    keep_artifacts: float | None,
    keep_uploads: float,
    max_jobs: int,
    socket_group: str | None,
    admin_group: str | None,
    listen: str | None,
    allow_hosts: tuple[str, ...],
    min_slice: float,
    weights: tuple[str, ...],
    policy: str,
) -> None:
    """Start the training daemon: a frozen base model, jobs of everybody.

    Ends at SIGTERM or Ctrl-C, when every job has saved its state; the next daemon on the same state goes on. A second
    one ends it at once.
    """
    raw = {
        "state_dir": state.absolute(),
        "socket": socket.absolute(),
        "bases": [parse_base(text) for text in bases],
        "base_slice": base_slice,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "threads": threads,
        "pack_tokens": pack_tokens,
        "pack_seconds": pack_seconds,
        "checkpoint_activations": checkpoint_activations,
        "compile": compiled,
        "memory_budget": memory_budget,
        "memory_margin": memory_margin,
        "host_memory": host_memory,
        "disk_reserve": disk_reserve,
        "checkpoint_seconds": checkpoint_every,
        "checkpoint_steps": checkpoint_steps,
        "worker_silence": worker_silence,
        "worker_hang": worker_hang,
        "idle_unload": idle_unload,
        "drain_seconds": drain_time,
        "keep_artifacts": keep_artifacts,
        "keep_uploads": keep_uploads,
        "max_resident_jobs": max_jobs,
        "min_slice": min_slice,
        "weights": parse_weights(weights),
        "policy": policy,
        "socket_group": socket_group,
        "admin_group": admin_group,
        "listen": None if listen is None else parse_listen(listen),
        "allow_hosts": allow_hosts,
    }
    try:
        settings = DaemonSettings.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, raw, DaemonSettings, "serve")) from None
    os.umask(0o077)  # what daemon and workers write is nobody else's to read, wherever the state directory lies
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.listen is not None and not is_loopback(settings.listen.host):
        click.echo(
            f"--listen {settings.listen}: is not encrypted: whoever sees the network sees tokens and data; "
            "put a proxy with TLS before it, or let people come through ssh (MLORA_SCHED_HOST=ssh://…)",
            err=True,
        )
    run_daemon(
        settings,
        lambda: LocalWorker(Role.TRAIN, settings.log_dir),
        lambda: LocalWorker(Role.PREPARE, settings.log_dir),
        lambda status: _announce(settings, status),
    )
    click.echo("stopped")


def _announce(settings: DaemonSettings, status: WorkerStatus) -> None:
    name = status.base or settings.bases[0].name
    for warning in status.warnings:
        say(f"{name} at {settings.socket}: {warning}")
    if status.state == "ready":
        where = settings.socket if settings.listen is None else f"{settings.socket} and http://{settings.listen}"
        click.echo(f"serving {name} at {where} on {status.device} (results: {status.exactness})")
    else:
        click.echo(f"{name} at {settings.socket}, process {os.getpid()}, worker {status.state}")
