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
from mlora_sched.client import SOCKET_VARIABLE, Client
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
def doctor(context: click.Context, torch: bool, socket: Path, as_json: bool) -> int:
    """Check this machine, the way to the daemon and the daemon; exit 1 when something failed."""
    named = context.get_parameter_source("socket") is ParameterSource.COMMANDLINE
    diagnosis = Diagnosis(checks=tuple(_checks(socket, "--socket" if named else _variable(), torch=torch)))
    if as_json:
        print_json(diagnosis)
    else:
        print_checks(diagnosis)
    return 0 if diagnosis.healthy else EXIT_UNWELL


def _variable() -> str:
    """What says where the socket is, when no option does; see `client.default_socket`."""
    for variable in (SOCKET_VARIABLE, "XDG_RUNTIME_DIR"):
        if os.environ.get(variable):
            return variable
    return "the default in the home directory"


def _checks(socket: Path, named_by: str, *, torch: bool) -> Iterator[Check]:
    yield check_versions()
    yield check_user(uid_map(), os.getuid())
    yield check_scratch(scratch_folder())
    driver = find_driver()
    yield check_driver(driver)
    yield check_torch(find_torch(), driver)
    if torch:
        yield check_torch_loads()
    door = check_door(socket, named_by)
    yield door
    if door.outcome is Outcome.FAIL:
        yield Check(name="daemon", outcome=Outcome.SKIP, found="not asked: its socket cannot be used")
        return
    with Client(socket, timeout=_PATIENCE) as client:
        yield from check_daemon(client, user_name(os.getuid()))
