"""What a job minimises. One class an objective; the losses live in `objectives/`."""

from __future__ import annotations

from typing import Literal

from mlora_sched.spec.common import Frozen


class SftObjective(Frozen):
    """Cross-entropy on the tokens that carry loss, averaged over the job's whole batch."""

    type: Literal["sft"] = "sft"


ObjectiveSpec = SftObjective
