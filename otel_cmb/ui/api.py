"""The JSON under the page; `docs/api.md` describes it. Every handler reads, none writes."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from otel_cmb._version import __version__
from otel_cmb.errors import CMBError, ConfigurationError, DatabaseUnavailableError, RunNotFoundError
from otel_cmb.reader import Event, Reader
from otel_cmb.reader.values import to_json
from otel_cmb.ui.live import Live

__all__ = ["Api"]

MAX_PAGE = 1000
STREAM_PAGE = 500
Answer = Any

STATUS: tuple[tuple[type[CMBError], int], ...] = (
    (RunNotFoundError, 404), (ConfigurationError, 400), (DatabaseUnavailableError, 503), (CMBError, 500),
)


class NotFoundError(CMBError):
    """Something else than a run is not there."""


class Api:
    """Handlers over a reader. `reader` is asked for each time: it may have been replaced."""

    def __init__(self, reader: Callable[[], Reader], *, jaeger_url: str | None) -> None:
        self._reader = reader
        self._jaeger_url = jaeger_url
        self._live = Live()
        # Few at a time: each holds a connection and a result.
        self._limiter = CapacityLimiter(4)

    def routes(self) -> list[Route]:
        """More specific paths first: ids may contain slashes."""
        table: tuple[tuple[str, Callable[[Request], Answer]], ...] = (
            ("/api/info", self.info),
            ("/api/sessions", self.sessions),
            ("/api/runs", self.runs),
            ("/api/runs/totals", self.runs_totals),
            ("/api/runs/{run_id:path}/history", self.history),
            ("/api/runs/{run_id:path}/events", self.events),
            ("/api/runs/{run_id:path}/tree", self.tree),
            ("/api/runs/{run_id:path}/live", self.live),
            ("/api/runs/{run_id:path}/totals", self.totals),
            ("/api/runs/{run_id:path}/graph", self.graph),
            ("/api/runs/{run_id:path}/steps", self.steps),
            ("/api/runs/{run_id:path}/files", self.files),
            ("/api/runs/{run_id:path}/messages", self.messages),
            ("/api/runs/{run_id:path}", self.run),
            ("/api/nodes/{node_id:path}/events", self.node_events),
            ("/api/events/{event_id:path}", self.event),
        )
        return [Route(path, self._endpoint(handler), methods=["GET"]) for path, handler in table]

    def _endpoint(self, handler: Callable[[Request], Answer]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                answer = await run_sync(handler, request, limiter=self._limiter)
            except CMBError as error:
                status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
                return _json({"error": str(error)}, 404 if isinstance(error, NotFoundError) else status)
            return answer if isinstance(answer, Response) else _conditional(request, to_json(answer))

        return endpoint

    # -- the database ---------------------------------------------------------------------------------------------

    def info(self, _request: Request) -> Answer:
        return {"version": __version__, "database": self._reader().where, "jaeger_url": self._jaeger_url}

    def sessions(self, request: Request) -> Answer:
        bound = _bound(request)
        found = self._reader().sessions(limit=MAX_PAGE)
        return {"sessions": [session.to_dict() for session in found if bound in (None, session.id)]}

    # -- runs -----------------------------------------------------------------------------------------------------

    def runs(self, request: Request) -> Answer:
        query = request.query_params
        limit = _limit(request, 50)
        found = self._reader().runs(
            status=query.getlist("status") or None, agent=query.get("agent") or None, text=query.get("text") or None,
            session=_bound(request) or query.get("session") or None, since=_moment(request, "since"),
            until=_moment(request, "until"), limit=limit, cursor=query.get("cursor") or None,
            totals=query.get("totals", "1") != "0", budget=1.0,
        )
        return {
            "runs": [run.to_dict() for run in found], "next": found[-1].cursor if len(found) == limit else None,
        }

    def runs_totals(self, request: Request) -> Answer:
        ids = request.query_params.getlist("id")[:MAX_PAGE]
        reader, bound = self._reader(), _bound(request)
        if bound is not None:
            ids = [run_id for run_id in ids if reader.run(run_id, totals=False).session_id == bound]
        return {"totals": {key: sums.to_dict() for key, sums in reader.run_totals(ids, budget=0.5).items()}}

    def run(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        return {"run": reader.run(run_id).to_dict()}

    def totals(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        return reader.totals(run_id).to_dict()

    def graph(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        return {
            "nodes": [node.to_dict() for node in reader.nodes(run_id)],
            "edges": [edge.to_dict() for edge in reader.edges(run_id)],
        }

    def steps(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        return {"steps": [step.to_dict() for step in reader.steps(run_id)]}

    def files(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        files = [
            {**file.to_dict(), "file_name": (file.file_path or "").rsplit("/", 1)[-1]} for file in reader.files(run_id)
        ]
        return {
            "run_id": request.path_params["run_id"], "resolved_run_id": run_id, "total_files": len(files),
            "files": files,
        }

    def messages(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        return {"messages": [message.to_dict() for message in reader.messages(run_id, limit=MAX_PAGE * 10)]}

    # -- events ---------------------------------------------------------------------------------------------------

    def events(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        query, limit = request.query_params, _limit(request, 200)
        found = reader.events(
            run_id, event_type=query.get("event_type") or None, status=query.get("status") or None,
            agent=query.get("agent") or None, limit=limit, after=query.get("after") or None,
        )
        return {
            "events": [event.to_dict() for event in found], "next": found[-1].cursor if len(found) == limit else None,
        }

    def tree(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        limit = _limit(request, 200)
        roots = reader.tree(run_id, limit=limit, after=request.query_params.get("after") or None)
        return {"tree": [root.to_dict() for root in roots]}

    def event(self, request: Request) -> Answer:
        reader, event_id = self._reader(), request.path_params["event_id"]
        event = reader.event(event_id)
        if event is None or _bound(request) not in (None, event.session_id):
            raise NotFoundError(f"no event {event_id!r} in {reader.where}")
        parent = None if event.parent_event_id is None else reader.line(event.parent_event_id)
        return {
            "event": event.to_dict(), "spans": reader.spans(event),
            "parent": None if parent is None else parent.to_dict(),
            "children": [line.to_dict() for line in reader.children(event.id, limit=MAX_PAGE)],
        }

    def live(self, request: Request) -> Answer:
        reader, run_id = self._run(request)
        query = request.query_params
        tag = request.headers.get("if-none-match", "").strip().removeprefix("W/").strip('"')
        known = query.get("since") or tag or None
        answer = self._live.since(reader, run_id, known, query.get("after") or None)
        if answer is None:
            return Response(status_code=304, headers={"etag": f'"{known}"'})
        return _json(answer, 200, {"etag": f'"{answer["token"]}"'})

    # -- the application's own two --------------------------------------------------------------------------------

    def history(self, request: Request) -> Answer:
        """As the application answers it: an unknown run has no events."""
        reader, asked = self._reader(), request.path_params["run_id"]
        query = request.query_params
        head = {"run_id": asked, "resolved_run_id": asked}
        try:
            reader, run_id = self._run(request)
        except RunNotFoundError as error:
            return {**head, "total_events": 0, "events": [], "error": str(error)}
        head["resolved_run_id"] = run_id
        kind = query.get("event_type") or None
        pages = _pages(lambda after: reader.history(run_id, event_type=kind, limit=STREAM_PAGE, after=after))
        return _stream(head, pages, _history_row)

    def node_events(self, request: Request) -> Answer:
        """As the application answers it, `start` rows only with `include_internal`."""
        reader, node_id = self._reader(), request.path_params["node_id"]
        query, bound = request.query_params, _bound(request)
        asked = query.get("run_id") or None
        empty = {"node_id": node_id, "total_events": 0, "events": []}
        try:
            run_id = reader.resolve(asked) if asked is not None else reader.run_of_node(node_id)
        except RunNotFoundError as error:
            return {**empty, "error": str(error)}
        if run_id is None or (bound is not None and reader.run(run_id, totals=False).session_id != bound):
            return {**empty, "error": f"no run has a node {node_id!r}"}
        internal = query.get("include_internal", "").lower() in {"true", "1", "yes", "on"}
        kind = query.get("event_type") or None
        pages = _pages(lambda after: reader.events_of_node(
            node_id, run_id, event_type=kind, include_internal=internal, limit=STREAM_PAGE, after=after
        ))
        return _stream({"node_id": node_id}, pages, _node_row)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _run(self, request: Request) -> tuple[Reader, str]:
        """The reader and the id of the run that is meant; a run of a session the token is not bound to is unknown."""
        reader, name, bound = self._reader(), request.path_params["run_id"], _bound(request)
        run_id = reader.resolve(name)
        if bound is not None and reader.run(run_id, totals=False).session_id != bound:
            raise RunNotFoundError(f"no run {name!r} in this session")
        return reader, run_id


def _bound(request: Request) -> str | None:
    session: str | None = getattr(request.state, "session", None)
    return session


def _limit(request: Request, default: int) -> int:
    text = request.query_params.get("limit") or str(default)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PAGE):
        raise ConfigurationError(f"limit: found {text[:40]!r}, expected a whole number from 1 to {MAX_PAGE}")
    return int(text)


def _moment(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00").replace(" ", "+"))
    except ValueError:
        raise ConfigurationError(f"{name}: found {text[:40]!r}, expected a time like 2026-11-22T09:30:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        to_json(value), status, {"cache-control": "no-cache", **(headers or {})}, media_type="application/json"
    )


def _conditional(request: Request, body: bytes) -> Response:
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, media_type="application/json")


def _pages(read: Callable[[str | None], list[Event]]) -> Iterator[list[Event]]:
    after: str | None = None
    while True:
        page = read(after)
        if page:
            yield page
        if len(page) < STREAM_PAGE:
            return
        after = page[-1].cursor


def _stream(head: dict[str, Any], pages: Iterator[list[Event]], render: Callable[[Event], dict[str, Any]]) -> Response:
    """An object of `head`, `events` and `total_events`, a page of rows in memory at a time."""
    first = next(pages, [])

    def body() -> Iterator[bytes]:
        yield to_json(head)[:-1] + b',"events":['
        total, page, before = 0, first, b""
        while page:
            for event in page:
                yield before + to_json(render(event))
                before = b","
            total += len(page)
            page = next(pages, [])
        yield b'],"total_events":%d}' % total

    return StreamingResponse(body(), headers={"cache-control": "no-cache"}, media_type="application/json")


def _naive(moment: datetime | None) -> str | None:
    """As the application writes times: UTC without saying so."""
    return None if moment is None else moment.replace(tzinfo=None).isoformat()


def _history_row(event: Event) -> dict[str, Any]:
    return {
        "id": event.id, "timestamp": _naive(event.timestamp), "event_type": event.event_type,
        "event_subtype": event.event_subtype, "node_id": event.node_id, "agent_name": event.agent_name,
        "description": event.meta.get("description") if isinstance(event.meta, dict) else None, "meta": event.meta,
        "inputs": event.inputs, "outputs": event.outputs, "error_message": event.error_message, "status": event.status,
        "duration_ms": event.duration_ms,
    }


def _node_row(event: Event) -> dict[str, Any]:
    return {
        "id": event.id, "event_type": event.event_type, "event_subtype": event.event_subtype,
        "agent_name": event.agent_name, "timestamp": _naive(event.timestamp), "duration_ms": event.duration_ms,
        "execution_order": event.execution_order, "depth": event.depth, "inputs": event.inputs,
        "outputs": event.outputs, "error_message": event.error_message, "status": event.status, "meta": event.meta,
        "parent_event_id": event.parent_event_id,
    }
