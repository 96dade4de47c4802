"""Who may read: the host name asked for, the token, and the headers that keep hostile content text."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl, quote, unquote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LOOPBACK", "SECURITY_HEADERS", "FixedTokens", "Guard", "Tokens"]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
COOKIE = "otel_cmb_token"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Known(Protocol):
    """Who a token belongs to."""

    @property
    def session_id(self) -> str | None: ...


class Tokens(Protocol):
    """What `otel_cmb.receiver.tokens.TokenFile` does: the owner of an `Authorization` header, or `None`."""

    def find(self, authorization: str | None) -> Known | None: ...


@dataclass(frozen=True, slots=True)
class _Reader:
    session_id: str | None


class FixedTokens:
    """Tokens known from the start, each with the session it is bound to, or `None`."""

    def __init__(self, tokens: Mapping[str, str | None]) -> None:
        self._digests = {hashlib.sha256(token.encode()).digest(): _Reader(bound) for token, bound in tokens.items()}

    def find(self, authorization: str | None) -> Known | None:
        scheme, _, token = (authorization or "").partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for digest, reader in self._digests.items():  # all of them, in constant time
            if hmac.compare_digest(digest, given):
                found = reader
        return found if scheme.lower() == "bearer" else None


class Guard:
    """Before the application: only GET and HEAD, only known hosts, only with the token.

    Without `tokens` everybody who can connect may read. A page of another site cannot read from here: a name of its own
    that it lets point to this machine (DNS rebinding) is not among `hosts`. `hosts=None` allows any name, for addresses
    that are protected by a token.
    """

    def __init__(self, app: ASGIApp, *, tokens: Tokens | None, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in {"GET", "HEAD"}:
            return PlainTextResponse("read-only: GET and HEAD\n", 405, {"allow": "GET, HEAD"})
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("this name is not served here; use the address that was printed\n", 421)
        return None if self._tokens is None else self._check_token(self._tokens, scope, headers)

    def _check_token(self, tokens: Tokens, scope: Scope, headers: Headers) -> Response | None:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and tokens.find(f"Bearer {given[0]}") is not None:
            # The token leaves the address bar, the history and what is copied from it. Lax: a link in a mail opens the
            # page; other sites cannot read answers in any case.
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            answer = RedirectResponse(scope["path"] + ("?" + rest if rest else ""), 303)
            secure = scope.get("scheme") == "https"
            answer.set_cookie(COOKIE, quote(given[0], safe=""), httponly=True, samesite="lax", secure=secure)
            return answer
        authorization = headers.get("authorization")
        if authorization is None:
            cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
            authorization = None if cookie is None else f"Bearer {unquote(cookie)}"
        known = tokens.find(authorization)
        if known is None:
            return PlainTextResponse(
                "a token is needed: open this page with ?token=..., or send Authorization: Bearer ...\n", 401,
                {"www-authenticate": "Bearer"},
            )
        scope.setdefault("state", {})["session"] = known.session_id
        return None


def _host(header: str) -> str:
    """The host of a `Host` header, without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.rpartition(":")[0] if ":" in name else name
