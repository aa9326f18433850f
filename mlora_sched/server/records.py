"""A route class: a function's record becomes JSON in the thread that the function runs in.

FastAPI by itself would hand every answer to a second thread, which costs a status poll more than its question to the
database. What is documented stays the same: the models of the functions' annotations.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fastapi import Response
from fastapi.routing import APIRoute

from mlora_sched.spec.common import Frozen


class RecordRoute(APIRoute):
    """For functions that are no coroutines and return a `Frozen` record or a response; give it as `route_class`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not inspect.iscoroutinefunction(endpoint):
            endpoint = _rendered(endpoint, options.get("status_code") or 200)
        super().__init__(path, endpoint, **options)


def _rendered(endpoint: Callable[..., Any], status: int) -> Callable[..., Response]:
    @functools.wraps(endpoint)
    def answer(*args: Any, **values: Any) -> Response:
        found = endpoint(*args, **values)
        if isinstance(found, Response):
            return found
        assert isinstance(found, Frozen), f"{endpoint.__name__} returns {type(found).__name__}"
        return Response(found.model_dump_json(), status, media_type="application/json")

    return answer
