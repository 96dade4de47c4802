"""The pages beside the receiver: the web page of `otel-cmb ui` and Jaeger's query API over HTTP, for the same tokens.

Made when the first of them is asked for: a server that only receives starts without them. A page of another site that
lets its own name point to this machine (DNS rebinding) reads nothing: on a loopback address only its names are served.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Router
from starlette.types import Receive, Scope, Send

from otel_cmb.config import Settings
from otel_cmb.jaeger.http import routes
from otel_cmb.jaeger.query import JaegerQuery
from otel_cmb.reader import open_reader
from otel_cmb.receiver.house import House
from otel_cmb.receiver.settings import Address
from otel_cmb.ui.app import create_app
from otel_cmb.ui.guard import LOOPBACK

__all__ = ["Web"]


class Web:
    """An ASGI application: `/api/...` that the page does not know is Jaeger's, everything else is the page's."""

    def __init__(self, house: House, general: Settings, address: Address, query: JaegerQuery,
                 jaeger_url: str | None = None) -> None:
        self._house = house
        self._hosts: Collection[str] | None = LOOPBACK | {address.host} if address.loopback else None
        self.page: Starlette = create_app(
            lambda: open_reader(general.database_url, schema=general.schema, state_dir=general.state_dir),
            token=house.tokens, hosts=self._hosts, jaeger_url=jaeger_url,
        )
        self._jaeger = Router(routes(query, self._refusal), redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = any(route.matches(scope)[0] is Match.FULL for route in self.page.routes)
        if scope["path"].startswith("/api/") and not known:
            await self._jaeger(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            await self.page(scope, receive, send)
        else:
            await PlainTextResponse("Not Found", 404)(scope, receive, send)

    def _refusal(self, request: Request) -> tuple[int, str] | None:
        """How a caller of Jaeger's API is answered that may not read; `None` when it may."""
        if self._hosts is not None and (request.url.hostname or "") not in self._hosts:
            return 421, "this name is not served here; use the address that was printed"
        refusal = self._house.reading_refused(request.headers.get("authorization"))
        return None if refusal is None else (refusal.row.http, refusal.text)
