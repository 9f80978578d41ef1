"""What every request passes before a page sees it: host, origin, size and rate; and the headers of every answer."""

import asyncio
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BYTES = 1_000_000
"""Of what a page may send: the longest answer and its draft."""
_TOO_MUCH = 413, f"That is too much at once; {MAX_BYTES:,} bytes are allowed."
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass
class Rate:
    """So many a second, and some more at once; for each key by itself.

    Args:
        per_second: How many in the long run.
        burst: How many at once.
        clock: Seconds, from anywhere.
    """

    per_second: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _left: MutableMapping[str, tuple[float, float]] = field(default_factory=dict)

    def allows(self, key: str) -> bool:
        """Whether one more is allowed, which then counts."""
        now = self.clock()
        left, then = self._left.get(key, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.per_second)
        if len(self._left) > 10_000:
            self._left.clear()
        self._left[key] = (left - 1 if left >= 1 else left, now)
        return left >= 1


@dataclass(frozen=True)
class Site:
    """Where the page is.

    Args:
        hosts: Names by which browsers may call it, without the port.
        secure: Whether browsers reach it by https.
    """

    hosts: frozenset[str] = LOOPBACK
    secure: bool = False

    @property
    def scheme(self) -> str:
        """What addresses begin with."""
        return "https" if self.secure else "http"


class Guard:
    """Refuses requests that no page of ours sent, and what is too large or too much.

    A page of a stranger can make a browser call this machine by a name of its own (DNS rebinding): the host tells.
    It can send forms here: the origin tells.

    Args:
        app: What is guarded.
        site: Where it is.
    """

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site
        # An office of labelers comes from one address, and so does everything on this machine.
        self._rate = Rate(per_second=200, burst=1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":  # there are no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal, body = self._refusal(scope), b""
        if refusal is None:
            try:
                body = await asyncio.wait_for(_body(receive), timeout=30)
            except TimeoutError:
                refusal = 408, "The request took too long."
            if len(body) > MAX_BYTES:
                refusal = _TOO_MUCH
        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, sealed)
        else:
            await self.app(scope, _replayed(body, receive), sealed)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host_name(host) not in self.site.hosts:
            return 421, f"This page is at {', '.join(sorted(self.site.hosts))}, under no other name."
        client = scope.get("client") or ("nobody", 0)
        if not self._rate.allows(client[0]):
            return 429, "Too many requests; wait a moment."
        if scope["method"] not in ("GET", "HEAD"):
            if scope["method"] != "POST":
                return 405, "Pages are read and forms are sent, nothing else."
            if headers.get("origin") != f"{self.site.scheme}://{host}":
                return 403, "This was not sent by a page of this server."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            return _TOO_MUCH
        return None


def host_name(host: str) -> str | None:
    """The name in a `Host` header, without the port; None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return f"[{name}]" if name and ":" in name else name


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += bytes(message.get("body", b""))
        if not message.get("more_body") or len(body) > MAX_BYTES:
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    first = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return next(first, None) or await receive()

    return replay
