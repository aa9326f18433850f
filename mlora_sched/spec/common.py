"""The base class of every spec model. Not a place for helpers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MAX_DURATION_SECONDS = 10 * 365 * 86_400.0
"""Longest time that may be asked for: beyond ten years somebody has slipped, and calendars end somewhere."""


class Frozen(BaseModel):
    """An immutable record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
