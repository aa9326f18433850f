"""One of our errors as an answer. Which errors there are is `mlora_sched.errors`' business."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

from mlora_sched.errors import MloraError, Unauthorized
from mlora_sched.spec.api import ErrorBody

MOST_MESSAGE = 8 << 10
"""Characters of an error's message: it may name what was sent, and that may be long."""


def error_answer(
    kind: type[MloraError], message: str, status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The body every failure has, with a status that need not be its class's own."""
    if len(message) > MOST_MESSAGE:
        message = f"{message[:MOST_MESSAGE]}… (cut)"
    return JSONResponse(ErrorBody(error=kind.__name__, message=message).model_dump(), status, headers)


def answer_of(error: MloraError) -> JSONResponse:
    """The answer that says what one of our errors says."""
    headers = {"www-authenticate": 'Bearer realm="mlora_sched"'} if isinstance(error, Unauthorized) else None
    return error_answer(type(error), error.message, error.http_status, headers)
