"""What a process that trains on a CPU needs in its environment before torch is loaded.

`MKL_CBWR=AUTO,STRICT` asks MKL for the same bits of a row in a product of any height, on any number of threads and at
any address ("conditional numerical reproducibility"). Without it MKL picks its code by the height, so that most pack
lengths disagree with one another, the probe leaves them out, and small packs are padded to large ones. It costs
nothing that could be measured. Where another library does the products, it does nothing.

`GOMP_SPINCOUNT` bounds how long torch's threads spin at a barrier before they sleep, to about a millisecond. Threads
that sleep at once made small packs half as fast again on an idle machine; threads that spin for long wait for one
another's time slices beside another load.

Not here: `--threads`, which torch can be told at any time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

TRAINING: Mapping[str, str] = MappingProxyType({"MKL_CBWR": "AUTO,STRICT", "GOMP_SPINCOUNT": "20000"})
"""Values for variables that the user has not set."""


def for_training() -> dict[str, str]:
    """The environment of a new process that trains."""
    return {**TRAINING, **os.environ}


def prepare_process() -> None:
    """Make this process one that trains; to be called before torch is imported."""
    os.environ.update(for_training())
