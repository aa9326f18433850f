"""`submit`: send job specs, with the files they name, to the daemon, and say what may be expected of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.first_rows import first_rows
from mlora_sched.cli.output import print_job_line
from mlora_sched.cli.remote.options import daemon_options, outcome
from mlora_sched.cli.remote.waiting import waiting_for
from mlora_sched.cli.specs import GivenSpec, SpecPaths, read_spec, spec_arguments
from mlora_sched.cli.style import SHORT_ID, say
from mlora_sched.client import Client, Where
from mlora_sched.errors import SpecError
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import Priority
from mlora_sched.spec.override import Override
from mlora_sched.spec.state import JobState
from mlora_sched.spec.submission import MAX_RETRIES, Submitted


@click.command()
@spec_arguments
@click.option(
    "--after",
    multiple=True,
    metavar="ID",
    shell_complete=complete_jobs,
    help="Start when this job of yours has succeeded; repeatable.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, MAX_RETRIES),
    default=0,
    show_default=True,
    help="Try again so often after a dead worker, a failing disk or want of memory.",
)
@click.option("--key", help="Submit once: the same KEY again gives the same job.")
@click.option("--wait", "wait_for_end", is_flag=True, help="Wait until the jobs have ended; exit 1 if one failed.")
@daemon_options
def submit(
    specs: SpecPaths,
    overrides: tuple[Override, ...],
    after: tuple[str, ...],
    retries: int,
    key: str | None,
    wait_for_end: bool,
    socket: Where,
    as_json: bool,
) -> int:
    """Submit jobs from spec files, quoted globs, or - for standard input.

    All specs are checked before the first is sent. The data files they name travel with them.
    """
    given = [read_spec(path, overrides) for path in specs]
    files = [one.files() for one in given]
    keys = _keys(key, given, single=specs.single)
    answers: list[Submitted] = []
    ended: list[JobView] = []
    with Client(socket) as client:
        try:
            for one, paths, own_key in zip(given, files, keys, strict=True):
                answers.append(client.hand_in(one.spec, paths, key=own_key, after=after, retries=retries))
                if not as_json:
                    say(_line(answers[-1]))
            if not as_json:
                _advise(answers, given, files)
            if wait_for_end:
                with waiting_for([answer.job.id[:SHORT_ID] for answer in answers]):
                    ended = client.wait([answer.job.id for answer in answers])
        except KeyboardInterrupt:
            _tell_rest(given[len(answers) :])
            raise
        finally:  # what was accepted is told even when a later spec is not, or the wait is interrupted
            if as_json:
                click.echo(json.dumps(_plain(answers, ended), indent=2))
    if not as_json:
        for job in ended:
            print_job_line(job)
    return outcome(ended)


def _keys(key: str | None, given: Sequence[GivenSpec], *, single: bool) -> list[str | None]:
    """One key for each spec: KEY for a single one, else KEY/NAME; a glob means the same however many it matches.

    Raises:
        SpecError: two of them would have the same.
    """
    if key is None or single:
        return [key] * len(given)
    names = [one.spec.name for one in given]
    for one in given:
        if names.count(one.spec.name) > 1:
            raise SpecError(
                f"{one.path}: name: {one.spec.name}: is that of another spec here; --key tells them by name"
            )
    return [f"{key}/{name}" for name in names]


def _line(answer: Submitted) -> str:
    job = answer.job
    parts = [job.id[:SHORT_ID], job.name, job.shown_state]
    if answer.position is not None:
        parts.append(f"position {answer.position} of {answer.queue}")
    if answer.waits_for:
        parts.append(f"waits for {', '.join(other[:SHORT_ID] for other in answer.waits_for)}")
    if answer.position is not None or answer.waits_for:
        if answer.estimated_bytes is not None:
            parts.append(f"~{format_size(answer.estimated_bytes)}")
        if answer.estimated_seconds is not None:
            parts.append(f"about {duration_text(answer.estimated_seconds)}")
    return "  ".join([*parts, *(["already submitted"] if answer.repeated else [])])


def duration_text(seconds: float) -> str:
    """A time in its largest unit, as far as an estimate goes."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, seconds):.0f} s"


def _advise(answers: Sequence[Submitted], given: Sequence[GivenSpec], files: Sequence[Mapping[str, Path]]) -> None:
    """On standard error, so that a pipe gets the jobs alone."""
    first = answers[0].first and not answers[0].repeated
    lines = first_rows(given[0].spec.data, files[0]) if first else []
    if any(one.spec.priority is Priority.HIGH for one in given):
        lines.append("priority orders your own jobs only; what others get does not depend on it")
    lines += [
        f"{answer.job.name}: not kept, since they look like secrets: {', '.join(answer.not_kept)}"
        for answer in answers
        if answer.not_kept
    ]
    job = answers[-1].job
    ref = job.id[:SHORT_ID]
    pull = f"`mlora-sched pull {ref} DIR`"
    if not job.state.is_final:
        lines.append(f"next: `mlora-sched watch`, `mlora-sched logs -f {ref}`, {pull} when it has ended")
    elif job.state is JobState.SUCCEEDED:
        lines.append(f"next: {pull}")
    for line in lines:
        say(line, err=True)


def _tell_rest(rest: Sequence[GivenSpec]) -> None:
    """After Ctrl-C: which specs have not become jobs, as far as is known."""
    if rest:
        names = ", ".join(one.spec.name for one in rest)
        say(f"not submitted: {names} (maybe {rest[0].spec.name}: `mlora-sched ls` tells)", err=True)


def _plain(answers: Sequence[Submitted], ended: Sequence[JobView]) -> list[dict[str, object]]:
    """The jobs as they stand now, each with what the daemon said to it."""
    jobs = {job.id: job.model_dump(mode="json") for job in ended}
    return [
        answer.job.model_dump(mode="json")
        | answer.model_dump(mode="json", exclude={"job"})
        | jobs.get(answer.job.id, {})
        for answer in answers
    ]
