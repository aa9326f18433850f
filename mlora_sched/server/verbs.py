"""What people call the operations of the API: verbs of the command line, without `admin`. It decides about nothing."""

from __future__ import annotations

_VERBS = {
    "list_jobs": "ls",
    "get_job": "show",
    "get_detail": "show",
    "get_spec": "show",
    "get_metrics": "logs",
    "get_events": "logs",
    "get_experts": "show",
    "set_priority": "priority",
    "remove": "rm",
    "get_adapter": "pull",
    "submit_sweep": "submit",
    "list_sweeps": "sweep ls",
    "get_sweep": "sweep show",
    "pause_sweep": "pause",
    "resume_sweep": "resume",
    "cancel_sweep": "cancel",
    "put_file": "upload",
    "has_file": "upload",
    "get_daemon": "doctor",
    "get_checkup": "doctor",
    "get_memory": "watch",
    "get_activity": "watch",
    "get_backup": "backup",
    "get_trace": "export-trace",
    "collect_garbage": "gc",
    "get_audit": "audit",
    "create_token": "token create",
    "list_tokens": "token ls",
    "revoke_token": "token revoke",
    "get_own": "quota show",
    "get_all": "quota show",
    "change": "quota set",
}


def verb_of(operation: str) -> str:
    """The verb that asks for an operation, by the name of its route; most are called the same."""
    return _VERBS.get(operation, operation)
