"""The version, in a module of its own: who wants it takes it from here.

`mlora_sched` itself offers `load_adapter`, which needs torch. A module of ours that imported the version from there
would count, for import-linter, as one that may load torch.
"""

from __future__ import annotations

__version__ = "0.1.0"
