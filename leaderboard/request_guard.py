"""Middleware that answers only requests of this site's own pages, under known host names.

A page of another site cannot read the leaderboard through a browser of the local network: its
requests have another Host (DNS rebinding) or another Origin.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names of this machine for itself."""
OPEN_ENDPOINTS = {"health", "host-config", "stream"}
"""What the pages need of Streamlit's endpoints below `_stcore`; metrics and uploads are closed."""
READING_METHODS = {"GET", "HEAD"}

UNKNOWN_HOST = (
    "This host name is not served here. Use the address that `bench leaderboard` printed, or start "
    "it with --allow-host NAME.\n"
)
OTHER_ORIGIN = "Requests of other sites are not answered. Open the pages at their own address.\n"
NOT_READING = "These pages are read-only: use GET or HEAD.\n"
CLOSED = "There is nothing at this address.\n"


def host_name(authority: str) -> str | None:
    """The name in a Host header or a network location, in small letters; None where it is invalid.

    >>> host_name("[::1]:8501"), host_name("Localhost."), host_name("a@b"), host_name("a:x")
    ('::1', 'localhost', None, None)
    """
    try:
        parts = urlsplit(f"//{authority}")
        name, _ = parts.hostname, parts.port  # the port is checked when it is read
    except ValueError:
        return None
    if not name or parts.netloc != authority or "@" in authority:
        return None
    return name.removesuffix(".")


class RequestGuard:
    """Middleware that refuses unknown hosts, other origins, writing and closed endpoints."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        """`allowed` are the names that are served besides LOCAL_HOSTS."""
        self.app = app
        self.allowed = {*LOCAL_HOSTS, *(name.lower() for name in allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request that is allowed; answer any other with one sentence."""
        refusal = self.refusal(scope) if scope["type"] in {"http", "websocket"} else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":  # closed before it is accepted: the answer is 403
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, sentence = refusal
            await PlainTextResponse(sentence, status)(scope, receive, send)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence of a refusal; None where the request is allowed."""
        hosts, origins = (_values(scope, name) for name in (b"host", b"origin"))
        if len(hosts) != 1 or host_name(hosts[0]) not in self.allowed:
            return 421, UNKNOWN_HOST
        if any(urlsplit(origin).netloc != hosts[0] for origin in origins):
            return 403, OTHER_ORIGIN
        if scope["type"] == "http" and scope["method"] not in READING_METHODS:
            return 405, NOT_READING
        _, core, endpoint = scope["path"].partition("_stcore")
        if core and endpoint.strip("/") not in OPEN_ENDPOINTS:
            return 404, CLOSED
        return None


def _values(scope: Scope, wanted: bytes) -> list[str]:
    """The values of a header."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
