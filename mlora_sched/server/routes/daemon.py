"""The daemon itself over HTTP: who answers and how busy it is."""

from __future__ import annotations

import os

from fastapi import APIRouter

from mlora_sched import __version__
from mlora_sched.server.context import ContextOf
from mlora_sched.spec.api import DaemonView

router = APIRouter(prefix="/daemon", tags=["daemon"])


@router.get("")
def get_daemon(context: ContextOf) -> DaemonView:
    """Version, bases, device, worker and load; nothing of any one job."""
    status = context.store.worker_status()
    return DaemonView(
        version=__version__,
        pid=os.getpid(),
        bases=tuple(base.name for base in context.settings.bases),
        device=status.device or context.settings.device,
        exactness=status.exactness,
        worker=status.state,
        jobs=context.store.counts(),
        tokens_per_second=status.tokens_per_second,
        fill=status.fill,
    )
