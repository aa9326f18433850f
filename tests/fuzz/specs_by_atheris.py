"""Fuzz the spec parser for as long as one likes, guided by coverage. Run by hand; the suite replays the corpus.

    pip install atheris
    python -m tests.fuzz.specs_by_atheris tests/fuzz/corpus -max_total_time=600

What it finds belongs into the corpus, with the fix.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["mlora_sched.spec", "yaml"]):
    from tests.fuzz.target import both

if __name__ == "__main__":
    atheris.Setup(sys.argv, both)
    atheris.Fuzz()
