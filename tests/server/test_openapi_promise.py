"""Whatever is asked of the API, the answer is one that its OpenAPI document promises, and never a 5xx.

schemathesis draws the requests from the document, good ones and bad ones; the application answers in this process, so
what lies below it (HTTP itself, connections) is not looked at here.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
import schemathesis
from daemon.stand_in import stand_in
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import CheckFunction, load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks
from serving import MAX_FILE_BYTES, Served
from starlette.types import Receive, Scope, Send

from mlora_sched.errors import SpecError
from mlora_sched.server.app import create_app
from mlora_sched.server.auth import Caller
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.sweep import Sweep, parse_document
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Terms

load_all_checks()
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
UPLOADED = b'{"text": "a row"}\n'
WHO = "x-test-caller"
SWEEP = {"parameters": {"training.learning_rate": {"values": [1e-3, 1e-4]}}, "metric": "loss"}


@pytest.fixture
def served(serve_settings: DaemonSettings) -> Any:
    """Jobs in every state that a request can meet, and no server: see `asked`."""
    engine = open_database(serve_settings.database)
    found = Served(JobStore(engine), serve_settings)
    digest = hashlib.sha256(UPLOADED).hexdigest()
    serve_settings.spool_dir.mkdir(parents=True)
    (serve_settings.spool_dir / digest).write_bytes(UPLOADED)
    for owner in ("ann", "bob"):
        found.store.add_file(digest, len(UPLOADED), owner, time.time())
    for number in range(5):
        spec = parse_job({"name": "toy", "data": {"train": "a.jsonl"}})
        found.store.insert(job_id(number), spec, {"a.jsonl": digest}, "ann", "demo", time.time())
    sweep = parse_document({"name": "toy", "data": {"train": "a.jsonl"}, "sweep": SWEEP})
    assert isinstance(sweep, Sweep)
    found.store.insert_sweep("s-" + "0" * 32, sweep, {"a.jsonl": digest}, "ann", "demo", time.time(), Terms())
    for number in (1, 2, 3):
        found.train(job_id(number), 3, save=(2, 3), best=2)
    found.finish(job_id(2))
    found.fail(job_id(3), "loss is nan")
    yield found
    engine.dispose()


def job_id(number: int) -> str:
    return f"j-{number:016x}"


@pytest.fixture
def operations(served: Served) -> list[APIOperation]:
    """Those of the document; sent to the application, which takes whom the request names for the caller."""
    app = create_app(served.store, served.settings, max_file_bytes=MAX_FILE_BYTES, estimating=stand_in)

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        user = dict(scope["headers"])[WHO.encode()].decode()
        scope.setdefault("state", {})["caller"] = Caller(user, is_admin=user == "ann")
        await app(scope, receive, send)

    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = identified
    return [found.ok() for found in schema.get_all_operations()]


def sensible(data: st.DataObject, operation: APIOperation, mode: GenerationMode) -> Case:
    """A request of this operation that has a chance to find what it names."""
    fixed: dict[str, Any] = {}
    if "{ref}" in operation.path:
        ref = data.draw(st.sampled_from([None, *map(job_id, range(6)), "toy"]))
        fixed = {} if ref is None else {"path_parameters": {"ref": ref}}
    case = data.draw(operation.as_strategy(generation_mode=mode, **fixed))
    case.headers[WHO] = data.draw(st.sampled_from(["ann", "bob"]))
    if isinstance(case.body, dict) and "document" in case.body and mode is GenerationMode.POSITIVE:
        try:
            found = parse_document(case.body["document"]["spec"] | {"sweep": case.body["document"]["sweep"]})
        except SpecError:
            return case
        assert isinstance(found, Sweep)
        case.body["files"] = {name: hashlib.sha256(UPLOADED).hexdigest() for name in found.files}
    if isinstance(case.body, dict) and "spec" in case.body and mode is GenerationMode.POSITIVE:
        try:
            names = parse_job(case.body["spec"]).files
        except SpecError:
            return case
        case.body["files"] = {name: hashlib.sha256(UPLOADED).hexdigest() for name in names}
    return case


def can_be_wrong(operation: APIOperation) -> bool:
    return bool(operation.query or operation.body) or "{sha256}" in operation.path


def ask(operations: list[APIOperation], mode: GenerationMode, count: int, subtests: pytest.Subtests) -> set[int]:
    """Send `count` requests of every operation and check the answers; returns the status codes that came."""
    seen: set[int] = set()
    held = CHECKS if mode is GenerationMode.POSITIVE else [*CHECKS, checks.negative_data_rejection]
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not can_be_wrong(operation):
            continue

        @examples(max_examples=count, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.builds(sensible, st.data(), st.just(operation), st.just(mode)))
        def holds(case: Case) -> None:
            answer = case.call()
            seen.add(int(answer.status_code))
            case.validate_response(answer, checks=held)

        with subtests.test(operation.label):
            holds()
    return seen


def test_good_requests_are_answered_as_promised(operations: list[APIOperation], subtests: pytest.Subtests) -> None:
    seen = ask(operations, GenerationMode.POSITIVE, 12, subtests)
    assert {200, 201, 404, 409} <= seen


def test_bad_requests_are_refused_as_promised(operations: list[APIOperation], subtests: pytest.Subtests) -> None:
    seen = ask(operations, GenerationMode.NEGATIVE, 12, subtests)
    assert 422 in seen


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_long_form(operations: list[APIOperation], mode: GenerationMode, subtests: pytest.Subtests) -> None:
    ask(operations, mode, 300, subtests)


PLACES = {"ref": "toy", "sha256": "0" * 64, "token_id": "t-" + "0" * 16}


def test_other_methods_are_refused_and_the_right_ones_named(operations: list[APIOperation]) -> None:
    methods: dict[str, set[str]] = {}
    for operation in operations:
        methods.setdefault(operation.path, set()).add(operation.method.upper())
    for path, known in methods.items():
        first = next(one for one in operations if one.path == path)
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - known:
            case = first.Case(path_parameters=PLACES, headers={WHO: "ann"}, method=method)
            answer = case.call()
            assert answer.status_code == 405, (method, path)
            assert answer.json()["error"] == "UserError"
            assert set(answer.headers["allow"][0].split(", ")) & known
