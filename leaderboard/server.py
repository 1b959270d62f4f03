"""The ASGI app of the leaderboard behind its middleware, for `streamlit run` and uvicorn."""

import os
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leaderboard.json_api import ROUTES
from leaderboard.request_guard import RequestGuard

ALLOWED_HOSTS = "BENCH_ALLOWED_HOSTS"
"""Environment variable with the names that are served besides those of this machine."""
CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",  # the charts run without eval
        "style-src 'self' 'unsafe-inline'",  # Streamlit writes styles into the page
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class SecurityHeaders:
    """Middleware that restricts the browser to requests to this host."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward every request; add the headers to each HTTP response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


app = st.App(
    Path(__file__).with_name("app.py"),
    routes=ROUTES,
    middleware=[
        Middleware(SecurityHeaders),
        Middleware(RequestGuard, allowed=os.environ.get(ALLOWED_HOSTS, "").split()),
    ],
)
