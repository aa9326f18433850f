"""The scheduling policies by name. A policy is added by one file here and one line in `_POLICIES`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mlora_sched.errors import UserError
from mlora_sched.sched.plan import Policy
from mlora_sched.sched.policies import fair

_POLICIES: Mapping[str, Policy] = MappingProxyType({"fair": fair.plan})


def policy_names() -> tuple[str, ...]:
    """Every policy that `find_policy` knows."""
    return tuple(_POLICIES)


def find_policy(name: str) -> Policy:
    """The policy called `name`.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in _POLICIES:
        raise UserError(f"policy {name!r} is not known; choose one of {', '.join(_POLICIES)}")
    return _POLICIES[name]
