"""`doctor`: look at everything between this user and a training job, and say what to do about what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
from click.core import ParameterSource

from mlora_sched.cli.checks.daemon import check_daemon
from mlora_sched.cli.checks.door import check_door
from mlora_sched.cli.checks.listing import print_checks
from mlora_sched.cli.checks.machine import (
    check_driver,
    check_scratch,
    check_torch,
    check_torch_loads,
    check_user,
    check_versions,
    find_driver,
    find_torch,
    scratch_folder,
    uid_map,
)
from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.client import HOST_VARIABLE, SOCKET_VARIABLE, Client, Where
from mlora_sched.errors import MloraError
from mlora_sched.files import user_name
from mlora_sched.spec.doctor import Check, Diagnosis, Outcome

EXIT_UNWELL = 1
"""Something failed."""

_PATIENCE = 30.0
"""Seconds for the daemon's answer: it looks at its database meanwhile."""


@click.command()
@click.option("--torch", is_flag=True, help="Load torch as well and ask it for its GPUs; takes some seconds.")
@daemon_options
@click.pass_context
def doctor(context: click.Context, torch: bool, socket: Where, as_json: bool) -> int:
    """Check this machine, the way to the daemon and the daemon; exit 1 when something failed."""
    named = context.get_parameter_source("socket") is ParameterSource.COMMANDLINE
    checks = [*_of_the_machine(torch=torch), *_of_the_daemon(socket, "--socket" if named else _variable())]
    diagnosis = Diagnosis(checks=tuple(checks))
    if as_json:
        print_json(diagnosis)
    else:
        print_checks(diagnosis)
    return 0 if diagnosis.healthy else EXIT_UNWELL


def _variable() -> str:
    """What says where the daemon is, when no option does; see `client.default_where`."""
    for variable in (HOST_VARIABLE, SOCKET_VARIABLE, "XDG_RUNTIME_DIR"):
        if os.environ.get(variable):
            return variable
    return "the default in the home directory"


def _of_the_machine(*, torch: bool) -> Iterator[Check]:
    yield check_versions()
    yield check_user(uid_map(), os.getuid())
    yield check_scratch(scratch_folder())
    driver = find_driver()
    yield check_driver(driver)
    yield check_torch(find_torch(), driver)
    if torch:
        yield check_torch_loads()


def _of_the_daemon(where: Where, named_by: str) -> Iterator[Check]:
    if isinstance(where, Path):
        door = check_door(where, named_by)
    else:
        door = Check(name="address", outcome=Outcome.OK, found=f"{where} (from {named_by})")
    yield door
    if door.outcome is Outcome.FAIL:
        yield Check(name="daemon", outcome=Outcome.SKIP, found="not asked: its socket cannot be used")
        return
    try:
        with Client(where, timeout=_PATIENCE) as client:
            answers = check_daemon(client, user_name(os.getuid()))
    except MloraError as error:  # what forwards a socket of another machine does not get through
        answers = [Check(name="daemon", outcome=Outcome.FAIL, found=error.message)]
    yield from answers
