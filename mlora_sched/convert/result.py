"""What a conversion gives: the spec, and what became of every key. How keys are read is the tables' business."""

from __future__ import annotations

from enum import StrEnum

from pydantic import JsonValue

from mlora_sched.spec.common import Frozen


class Source(StrEnum):
    """A trainer whose configs are read."""

    AXOLOTL = "axolotl"
    LLAMAFACTORY = "llamafactory"

    @property
    def label(self) -> str:
        """As its makers write it."""
        return "Axolotl" if self is Source.AXOLOTL else "LLaMA-Factory"


class Fate(StrEnum):
    """What becomes of a key."""

    MAPPED = "mapped"
    CHANGED = "changed"
    DROPPED = "dropped"


class Entry(Frozen):
    """One key and what became of it.

    Attributes:
        key: as the document has it; keys inside lists have their place, `datasets.0.path`. Of what was filled in, the
            field of ours.
        fields: dotted fields of the spec that it decides, alone or with others.
        reason: why it was changed, dropped or filled in; empty where it means the same here.
    """

    key: str
    fields: tuple[str, ...] = ()
    reason: str = ""


class Conversion(Frozen):
    """A config as a job spec.

    Attributes:
        spec: passes `spec.job.parse_job`; holds only what the config says, and what fills it in.
        mapped: keys that mean the same here.
        changed: keys that are expressed otherwise, or only nearly.
        dropped: keys without a counterpart, and those that are off.
        filled: fields of ours that no key sets, because the trainer's default is not ours.
    """

    source: Source
    spec: dict[str, JsonValue]
    mapped: tuple[Entry, ...]
    changed: tuple[Entry, ...]
    dropped: tuple[Entry, ...]
    filled: tuple[Entry, ...]
