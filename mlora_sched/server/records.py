"""Route classes: a body's JSON is Unicode, a function's record becomes JSON in the thread that the function runs in.

FastAPI by itself would hand every answer to a second thread, which costs a status poll more than its question to the
database. What is documented stays the same: the models of the functions' annotations.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.exceptions import HTTPException
from fastapi.routing import APIRoute

from mlora_sched.spec.common import Frozen


class JsonRoute(APIRoute):
    """For all others: the JSON that comes is Unicode."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, of requests that read JSON as `_Request` does."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_Request(request.scope, request.receive))

        return handle


class _Request(Request):
    async def json(self) -> Any:
        r"""The body. Other than Python's own parser this one takes no `"\ud800"`, which no answer and no file can hold.

        Raises:
            HTTPException: it is no JSON, or nested too deeply.
        """
        try:
            return pydantic_core.from_json(await self.body())
        except ValueError as error:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is no JSON: {error}") from None


class RecordRoute(JsonRoute):
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
