"""The page and its JSON as one Starlette application, for `otel-cmb ui` and for the HTTP port of `otel-cmb serve`."""

from __future__ import annotations

import hashlib
import html
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from importlib import resources

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from otel_cmb.errors import ConfigurationError
from otel_cmb.reader import Reader
from otel_cmb.ui.api import Api
from otel_cmb.ui.guard import LOOPBACK, FixedTokens, Guard, Tokens

__all__ = ["create_app", "static"]

TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
PAGES = ("/", "/runs/{rest:path}")


def static(name: str) -> bytes:
    """One of the page's own files, as it is in the package."""
    return (resources.files("otel_cmb.ui") / "static" / name).read_bytes()


class Readers:
    """The reader in use: opened when first asked for, opened anew when its SQLite file was replaced by another."""

    def __init__(self, factory: Callable[[], Reader]) -> None:
        self._factory = factory
        self._reader: Reader | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Reader:
        with self._lock:
            if self._reader is not None and self._reader.replaced():
                self._reader.close()
                self._reader = None
            if self._reader is None:
                self._reader = self._factory()
            return self._reader

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None


def create_app(
    reader_factory: Callable[[], Reader], *, token: str | Mapping[str, str | None] | Tokens | None = None,
    jaeger_url: str | None = None, hosts: Collection[str] | None = LOOPBACK,
) -> Starlette:
    """The read-only application.

    `reader_factory` is called when a reader is needed; the application closes what it opened when it shuts down.
    `token`: what who reads must show: one, several with the session each is bound to (a bound one sees that session
    only), or a `TokenFile`. `hosts`: names under which the page may be asked for; `None` allows any, and is right only
    with a token.
    `jaeger_url`: where a trace can be looked at, e.g. http://127.0.0.1:16686.
    """
    if isinstance(token, str):
        token = {token: None}
    if isinstance(token, Mapping) and not all(token):
        raise ConfigurationError("token: found an empty one, which everybody knows; leave it out or give a real one")
    tokens: Tokens | None = (FixedTokens(token) if token else None) if isinstance(token, Mapping) else token
    readers = Readers(reader_factory)
    files = {entry.name: static(entry.name) for entry in (resources.files("otel_cmb.ui") / "static").iterdir()}
    page = files["index.html"].decode()

    async def index(request: Request) -> Response:
        base = html.escape(request.scope.get("root_path", "").rstrip("/"), quote=True)
        return _file(request, page.replace("%BASE%", base).encode(), "text/html")

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            return PlainTextResponse("no such file\n", 404)
        return _file(request, files[name], TYPES[name.rpartition(".")[2]])

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        readers.close()

    return Starlette(
        routes=[
            *Api(readers, jaeger_url=_http_only(jaeger_url)).routes(),
            Route("/static/{name}", asset, methods=["GET"]),
            *[Route(path, index, methods=["GET"]) for path in PAGES],
        ],
        middleware=[Middleware(Guard, tokens=tokens, hosts=hosts)],
        lifespan=lifespan,
    )


def _http_only(url: str | None) -> str | None:
    """A link that a click follows must not be a script."""
    return url.rstrip("/") if url is not None and url.startswith(("http://", "https://")) else None


def _file(request: Request, body: bytes, media_type: str) -> Response:
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)
