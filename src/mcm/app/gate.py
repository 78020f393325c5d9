"""What may pass between the network and gradio: the page's own routes, in bounded bodies, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Gradio has more routes than a page of videos needs (proxies, editors, monitors): those that are not here do not exist.
_PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/pwa_icon")
_FOLDERS = ("/assets/", "/static/", "/svelte/")
_API = "/gradio_api/"
_CALLS = (
    "queue/join", "queue/data", "queue/status", "cancel", "reset", "info", "app_id", "startup-events", "theme.css",
    "upload_progress", "login_check", "token", "user",
)  # fmt: skip
_CALLS_INSIDE = ("heartbeat/", "run/", "call/")
_UPLOAD, _FILE = "upload", "file="
_JOINS = (f"{_API}queue/join", f"{_API}call/")
# A page that loads from nowhere but its own address, and that no other page can frame.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)


class Gate:
    """ASGI middleware. body_bytes: of a request that is no upload; upload_bytes: of one; busy: a full queue's words."""

    def __init__(self, app: App, body_bytes: int, upload_bytes: int, busy: str) -> None:
        self.app, self.body_bytes, self.upload_bytes, self.busy = app, body_bytes, upload_bytes, busy

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        if scope["type"] != "http" or not known(path, scope["path"]):
            await _refuse(send, 404, "there is no such thing on this page")
            return
        most = self.upload_bytes if path == _API + _UPLOAD else self.body_bytes
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if not claimed.isdigit() or int(claimed) > most:
            await _refuse(send, 413, f"too large: expected at most {most} bytes")
            return
        body = _Body(receive, most)
        await self.app(scope, body, self._guarded(send, path, body))

    def _guarded(self, send: Send, path: str, body: _Body) -> Send:
        """With the policy in the headers, and the page's own words where a body is too large or the queue full."""
        refused = False

        async def guarded(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                if body.over or (message["status"] == 503 and path.startswith(_JOINS)):
                    refused = True
                    large = f"too large: expected at most {body.most} bytes"
                    await (_refuse(send, 413, large) if body.over else _refuse(send, 503, self.busy))
                    return
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            if not refused:
                await send(message)

        return guarded


def known(path: str, whole: str) -> bool:
    """Whether the page has this route; whole: the path with a slash at its end where it came with one."""
    if path in _PAGES or whole.startswith(_FOLDERS):
        return True
    if not whole.startswith(_API):
        return False
    call = path.removeprefix(_API)
    if call.startswith(_FILE):
        return "://" not in call and not call.removeprefix(_FILE).lower().startswith(("http:", "https:"))
    return call in (*_CALLS, _UPLOAD) or call.startswith(_CALLS_INSIDE)


class _Body:
    """A request's body, counted as it comes; one that is too large breaks off, as if its sender had gone."""

    def __init__(self, receive: Receive, most: int) -> None:
        self.receive, self.most, self.came = receive, most, 0

    @property
    def over(self) -> bool:
        return self.came > self.most

    async def __call__(self) -> Message:
        message = await self.receive()
        self.came += len(message.get("body", b""))
        if self.over:
            raise ConnectionAbortedError("the body is too large")
        return message


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
