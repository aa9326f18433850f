"""Settings that must be in place before torch is imported."""

from __future__ import annotations

import os

# Two busy threads that spin at barriers on a machine with other work take turns waiting for one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
