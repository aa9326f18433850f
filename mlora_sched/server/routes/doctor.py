"""What the daemon finds out about itself and its caller, over HTTP."""

from __future__ import annotations

import platform
import time

from fastapi import APIRouter

from mlora_sched.server.auth import CallerOf
from mlora_sched.server.context import ContextOf
from mlora_sched.server.doctor import daemon_checks
from mlora_sched.server.records import RecordRoute
from mlora_sched.spec.doctor import DaemonCheckup
from mlora_sched.version import __version__

router = APIRouter(prefix="/daemon/doctor", tags=["daemon"], route_class=RecordRoute)


@router.get("")
def get_checkup(context: ContextOf, caller: CallerOf) -> DaemonCheckup:
    """Whom the daemon takes the caller for, and how worker, base, disk and database do; more for administrators."""
    checks = tuple(daemon_checks(context, caller, time.time()))
    return DaemonCheckup(
        version=__version__,
        python=platform.python_version(),
        time=time.time(),
        user=caller.user,
        admin=caller.is_admin,
        via=caller.via,
        checks=checks,
    )
