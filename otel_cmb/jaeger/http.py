"""Jaeger's query API over HTTP, as its pages (any version since 1.x) and Grafana's Jaeger data source call it.

v1 (`/api/...`, microseconds, `{"data": ...}`) and v3 (`/api/v3/...`, OTLP/JSON, camelCase; snake_case is taken too).
`/api/v3/traces/{id}` and the like are JSON 404s when there is nothing; every other path below `/api` too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from otel_cmb.errors import CMBError
from otel_cmb.event import Span
from otel_cmb.jaeger.http_query import MAX_LIMIT, trace_id_of, v1_query, v3_query, whole_number
from otel_cmb.jaeger.query import JaegerQuery
from otel_cmb.jaeger.summary import Summary
from otel_cmb.jaeger.v1 import trace_json
from otel_cmb.otlp import MalformedError, decode, json_from_spans

__all__ = ["routes"]

_LOG = logging.getLogger("otel_cmb.jaeger")

MAX_BODY = 64 * 1_048_576
_BODY_SECONDS = 30


class _AnswerError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


PURGE_ENV = "OTEL_CMB_ALLOW_PURGE"
"""`1`: `POST /api/purge` from this machine deletes every trace. For Jaeger's own storage suite, nothing else."""

Allow = Callable[[Request], tuple[int, str] | None]
"""Given the request: `None`, or the status and the reason of the answer to a caller who may not."""


def routes(query: JaegerQuery, allow: Allow | None = None) -> list[BaseRoute]:
    """The routes to mount at the server's root. Handlers read the database in the thread pool, never on the loop.
    `allow` is asked before each request; what it says is the answer."""
    api = _Api(query)
    paths: list[tuple[str, str, Callable[[Request], Any], bool]] = [
        ("GET", "/api/services", api.services, False),
        ("GET", "/api/services/{service:path}/operations", api.operations_of, False),
        ("GET", "/api/operations", api.operations, False),
        ("GET", "/api/traces", api.search, False),
        ("GET", "/api/traces/{trace_id}", api.trace, False),
        ("GET", "/api/dependencies", api.dependencies, False),
        ("GET", "/api/v3/services", api.v3_services, True),
        ("GET", "/api/v3/operations", api.v3_operations, True),
        ("GET", "/api/v3/traces", api.v3_search, True),
        ("GET", "/api/v3/traces/{trace_id}", api.v3_trace, True),
        ("GET", "/api/v3/trace-summaries", api.v3_summaries, True),
    ]
    made: list[BaseRoute] = [
        Route(path, _allowed(_endpoint(handler, v3), allow), methods=[method]) for method, path, handler, v3 in paths
    ]
    if os.environ.get(PURGE_ENV) == "1":
        made.append(Route("/api/purge", _allowed(_purge(query), allow), methods=["POST"]))
    made.append(Route("/api/transform", _allowed(_transform, allow), methods=["POST"]))
    made.append(Route("/api/{rest:path}", _allowed(_nothing, allow), methods=["GET", "POST", "PUT", "DELETE"]))
    return made


def _allowed(endpoint: Callable[[Request], Awaitable[Response]], allow: Allow | None) -> Callable[[Request], Any]:
    async def guarded(request: Request) -> Response:
        refusal = None if allow is None else allow(request)
        if refusal is None:
            return await endpoint(request)
        error = _v3_error if request.url.path.startswith("/api/v3/") else _v1_error
        response = error(*refusal)
        if response.status_code == 401:
            response.headers["www-authenticate"] = "Bearer"
        return response

    return guarded


def _endpoint(handler: Callable[[Request], Any], v3: bool) -> Callable[[Request], Awaitable[Response]]:
    error = _v3_error if v3 else _v1_error

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(_answered, handler, request, error)

    return endpoint


def _answered(handler: Callable[[Any], Any], argument: Any, error: Callable[[int, str], Response]) -> Response:
    try:
        return _json(handler(argument))
    except _AnswerError as found:
        return error(found.status, str(found))
    except ValueError as found:
        if isinstance(found, CMBError):
            return error(503, str(found))
        return error(400, str(found))
    except CMBError as found:
        return error(503, str(found))
    except PermissionError as found:
        return error(403, str(found))
    except SQLAlchemyError as found:
        _LOG.warning("a question of Jaeger failed in the database: %s", type(found).__name__)
        return error(503, "the database cannot be read now; try again")


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _v1_body(data: Any, errors: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    total = len(data) if isinstance(data, list) else 0
    return {"data": data, "total": total, "limit": 0, "offset": 0, "errors": errors}


def _v1_error(status: int, message: str) -> Response:
    return _json(_v1_body(None, [{"code": status, "msg": message}]), status)


def _v3_error(status: int, message: str) -> Response:
    return _json({"error": {"httpCode": status, "message": message}}, status)


def _purge(query: JaegerQuery) -> Callable[[Request], Awaitable[Response]]:
    def purge(request: Request) -> Any:
        if request.client is None or request.client.host not in {"127.0.0.1", "::1"}:
            raise _AnswerError(403, "only this machine may purge")
        query.purge()
        _LOG.warning("every trace was purged, as %s allows", PURGE_ENV)
        return {}

    purged = _endpoint(purge, v3=False)

    async def purge_and_hang_up(request: Request) -> Response:
        response = await purged(request)
        response.headers["connection"] = "close"  # Jaeger's suite counts a connection that is kept as a leak of its own
        return response

    return purge_and_hang_up


async def _nothing(request: Request) -> Response:
    error = _v3_error if request.url.path.startswith("/api/v3/") else _v1_error
    return error(404, f"nothing is served at {request.url.path[:200]}")


async def _transform(request: Request) -> Response:
    """OTLP/JSON in, Jaeger's JSON out: what Jaeger's page calls when a file is dropped on it."""
    body = bytearray()

    async def receive() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > MAX_BODY:
                raise _AnswerError(413, f"the file is larger than {MAX_BODY} bytes")

    try:
        await asyncio.wait_for(receive(), _BODY_SECONDS)
    except asyncio.TimeoutError:
        return _v1_error(408, f"the file did not arrive within {_BODY_SECONDS} s")
    except ClientDisconnect:
        return Response(status_code=400)
    except _AnswerError as found:
        return _v1_error(found.status, str(found))
    return await run_in_threadpool(_answered, _transformed, bytes(body), _v1_error)


def _transformed(body: bytes) -> Any:
    try:
        spans = decode(orjson.loads(body)).spans
    except (orjson.JSONDecodeError, MalformedError) as error:
        raise _AnswerError(400, f"found no OTLP/JSON: {error}") from error
    traces: dict[str, list[Span]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    return _v1_body([trace_json(found) for found in traces.values()])


class _Api:
    """The answers as Python values. `ValueError` is the client's mistake."""

    def __init__(self, query: JaegerQuery) -> None:
        self._query = query

    # v1

    def services(self, _: Request) -> Any:
        return _v1_body(self._query.services())

    def operations_of(self, request: Request) -> Any:
        return _v1_body(sorted({name for name, _ in self._query.operations(request.path_params["service"])}))

    def operations(self, request: Request) -> Any:
        service = request.query_params.get("service", "")
        if not service:
            raise ValueError("parameter service is needed")
        found = self._query.operations(service, request.query_params.get("spanKind", ""))
        return _v1_body([{"name": name, "spanKind": kind} for name, kind in found])

    def trace(self, request: Request) -> Any:
        return _v1_body([trace_json(self._trace(request))])

    def search(self, request: Request) -> Any:
        wanted = request.query_params.getlist("traceID")
        if wanted:
            traces = self._query.traces([trace_id_of(item) for item in wanted[:MAX_LIMIT]])
        else:
            traces = self._query.find(v1_query(request))
        return _v1_body([trace_json(spans) for spans in traces])

    def dependencies(self, request: Request) -> Any:
        end_ms = whole_number(request.query_params, "endTs", time.time_ns() // 10**6)
        lookback_ms = whole_number(request.query_params, "lookback", 24 * 3600 * 1000)
        found = self._query.dependencies((end_ms - lookback_ms) * 10**6, end_ms * 10**6)
        return _v1_body([{"parent": parent, "child": child, "callCount": count} for parent, child, count in found])

    # v3

    def v3_services(self, _: Request) -> Any:
        return {"services": self._query.services()}

    def v3_operations(self, request: Request) -> Any:
        kind = request.query_params.get("spanKind") or request.query_params.get("span_kind") or ""
        found = self._query.operations(request.query_params.get("service", ""), kind)
        return {"operations": [{"name": name, "spanKind": kind or "internal"} for name, kind in found]}

    def v3_trace(self, request: Request) -> Any:
        return {"result": _otlp(self._trace(request))}

    def v3_search(self, request: Request) -> Any:
        spans = [span for found in self._query.find(v3_query(request)) for span in found]
        if not spans:
            raise _AnswerError(404, "No traces found")
        return {"result": _otlp(spans)}

    def v3_summaries(self, request: Request) -> Any:
        return {"summaries": [_summary(found) for found in self._query.summaries(v3_query(request))]}

    def _trace(self, request: Request) -> list[Span]:
        spans = self._query.trace(trace_id_of(request.path_params["trace_id"]))
        if not spans:
            raise _AnswerError(404, "trace not found")
        return spans


def _otlp(spans: Sequence[Span]) -> dict[str, Any]:
    """OTLP/JSON as Jaeger's page checks it: an attribute without a value is not allowed there."""
    return json_from_spans([
        replace(span, attributes={key: "" if value is None else value for key, value in span.attributes.items()})
        if None in span.attributes.values() else span
        for span in spans
    ])


def _summary(found: Summary) -> dict[str, Any]:
    return {
        "traceId": found.trace_id,
        "traceID": found.trace_id,  # pages before 2.21 read this spelling
        "rootServiceName": found.root_service,
        "rootOperationName": found.root_operation,
        "minStartTimeUnixNano": str(found.start_ns),
        "maxEndTimeUnixNano": str(found.end_ns),
        "spanCount": found.spans,
        "errorSpanCount": found.errors,
        "orphanSpanCount": found.orphans,
        "services": [
            {"name": name, "spanCount": count, "errorSpanCount": errors}
            for name, (count, errors) in found.services.items()
        ],
    }
