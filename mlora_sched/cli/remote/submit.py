"""`submit`: send job specs, with the files they name, to the daemon, and say what may be expected of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.first_rows import first_rows
from mlora_sched.cli.output import print_job_line
from mlora_sched.cli.remote.options import daemon_options, outcome
from mlora_sched.cli.remote.waiting import waiting_for
from mlora_sched.cli.specs import GivenSpec, GivenSweep, SpecPaths, read_given, spec_arguments
from mlora_sched.cli.style import OWN_ONLY, SHORT_ID, say
from mlora_sched.cli.times import range_text
from mlora_sched.client import Client, Where
from mlora_sched.errors import SpecError
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import Priority
from mlora_sched.spec.override import Override
from mlora_sched.spec.state import JobState
from mlora_sched.spec.submission import MAX_RETRIES, Submitted

if TYPE_CHECKING:
    from mlora_sched.spec.sweep_view import SweepSubmitted

    _Answer = Submitted | SweepSubmitted
    _Given = GivenSpec | GivenSweep


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
    """Submit jobs from spec files, quoted globs, or - for standard input. One with `sweep:` in it becomes many.

    All specs are checked before the first is sent. The data files they name travel with them.
    """
    given = [read_given(path, overrides) for path in specs]
    files = [one.files() for one in given]
    keys = _keys(key, given, single=specs.single)
    answers: list[_Answer] = []
    ended: list[JobView] = []
    with Client(socket) as client:
        try:
            for one, paths, own_key in zip(given, files, keys, strict=True):
                if isinstance(one, GivenSweep):
                    sent = client.hand_in_sweep(one.sweep, paths, key=own_key, after=after, retries=retries)
                    answers.append(sent)
                else:
                    answers.append(client.hand_in(one.spec, paths, key=own_key, after=after, retries=retries))
                if not as_json:
                    say(_line(answers[-1]))
            if not as_json:
                _advise(answers, given, files)
            if wait_for_end:
                with waiting_for([_id_of(answer)[:SHORT_ID] for answer in answers]):
                    ended = client.wait([_id_of(answer) for answer in answers])
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


def _keys(key: str | None, given: Sequence[_Given], *, single: bool) -> list[str | None]:
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


def _id_of(answer: _Answer) -> str:
    return answer.job.id if isinstance(answer, Submitted) else answer.sweep.id


def _line(answer: _Answer) -> str:
    if not isinstance(answer, Submitted):
        view = answer.sweep
        parts = [view.id[:SHORT_ID], view.name, f"{view.trials} trials", *filter(None, [view.rule])]
        return "  ".join([*parts, *(["already submitted"] if answer.repeated else [])])
    job = answer.job
    parts = [job.id[:SHORT_ID], job.name, job.shown_state]
    if answer.position is not None:
        parts.append(f"position {answer.position} of {answer.queue}")
    if answer.waits_for:
        parts.append(f"waits for {', '.join(other[:SHORT_ID] for other in answer.waits_for)}")
    if answer.position is not None or answer.waits_for:
        if answer.estimated_bytes is not None:
            parts.append(f"~{format_size(answer.estimated_bytes)}")
        if answer.ends_in is not None:
            parts.append(f"done in {range_text(*answer.ends_in)}")
        elif answer.estimated_seconds is not None:
            parts.append(f"about {duration_text(answer.estimated_seconds)}")
    return "  ".join([*parts, *(["already submitted"] if answer.repeated else [])])


def duration_text(seconds: float) -> str:
    """A time in its largest unit, as far as an estimate goes."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, seconds):.0f} s"


def _advise(answers: Sequence[_Answer], given: Sequence[_Given], files: Sequence[Mapping[str, Path]]) -> None:
    """On standard error, so that a pipe gets the jobs alone."""
    first = isinstance(answers[0], Submitted) and answers[0].first and not answers[0].repeated
    lines = first_rows(given[0].spec.data, files[0]) if first else []
    if any(one.spec.priority is Priority.HIGH for one in given):
        lines.append(OWN_ONLY)
    lines += [
        f"{one.spec.name}: not kept, since they look like secrets: {', '.join(answer.not_kept)}"
        for answer, one in zip(answers, given, strict=True)
        if answer.not_kept
    ]
    for line in [*lines, *_next(answers[-1])]:
        say(line, err=True)


def _next(answer: _Answer) -> list[str]:
    """What one may do with what was submitted last."""
    ref = _id_of(answer)[:SHORT_ID]
    if not isinstance(answer, Submitted):
        return [f"next: `mlora-sched sweep show {ref}`, `mlora-sched pull {ref} DIR --best` when it has ended"]
    pull = f"`mlora-sched pull {ref} DIR`"
    if not answer.job.state.is_final:
        return [f"next: `mlora-sched watch`, `mlora-sched logs -f {ref}`, {pull} when it has ended"]
    return [f"next: {pull}"] if answer.job.state is JobState.SUCCEEDED else []


def _tell_rest(rest: Sequence[_Given]) -> None:
    """After Ctrl-C: which specs have not become jobs, as far as is known."""
    if rest:
        names = ", ".join(one.spec.name for one in rest)
        say(f"not submitted: {names} (maybe {rest[0].spec.name}: `mlora-sched ls` tells)", err=True)


def _plain(answers: Sequence[_Answer], ended: Sequence[JobView]) -> list[dict[str, object]]:
    """The jobs and sweeps as they stand now, each with what the daemon said to it."""
    jobs = {job.id: job.model_dump(mode="json") for job in ended}
    return [
        answer.job.model_dump(mode="json")
        | answer.model_dump(mode="json", exclude={"job"})
        | jobs.get(answer.job.id, {})
        if isinstance(answer, Submitted)
        else answer.model_dump(mode="json")
        for answer in answers
    ]
