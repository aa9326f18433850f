"""The scheduling policies by name. A policy is added by one file here and one entry in `_POLICIES`."""

from __future__ import annotations

from mlora_sched.errors import UserError
from mlora_sched.sched.plan import Policy
from mlora_sched.sched.policies.aspen import ASPEN
from mlora_sched.sched.policies.fair import FAIR
from mlora_sched.sched.policies.fifo import FIFO
from mlora_sched.sched.policies.sequential import SEQUENTIAL

_POLICIES = (FAIR, FIFO, ASPEN, SEQUENTIAL)


def policy_names() -> tuple[str, ...]:
    """Every policy that `find_policy` knows."""
    return tuple(policy.name for policy in _POLICIES)


def find_policy(name: str) -> Policy:
    """The policy called `name`.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    for policy in _POLICIES:
        if policy.name == name:
            return policy
    raise UserError(f"policy {name!r} is not known; choose one of {', '.join(policy_names())}")
