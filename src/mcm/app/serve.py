"""Starts the page: on loopback by default, from a folder of its own, with nothing asked of any other machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mcm.app.making import Offer
from mcm.app.page import CSS, THEME, build
from mcm.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@contextmanager
def served(offer: Offer, host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> Iterator[str]:
    """The page's address, for as long as the block lasts. port: 0 for any free one.

    Uploaded and made files lie in a temporary folder that is removed at the end.

    Raises:
        UserError: where the port is taken or the address is not this machine's.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from mcm.app.gate import Gate

    number = free_port(host, port)
    limits = offer.limits
    busy = f"The page is busy: {limits.queue} requests are waiting already. Please try again in a minute."
    middleware = [Middleware(Gate, body_bytes=limits.body_bytes, upload_bytes=limits.upload_bytes, busy=busy)]
    if host in LOOPBACK and not share:
        # A page of another site that a browser has open must not reach this one under that site's own name.
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]))
    with TemporaryDirectory(prefix="mcm-demo-") as place, _environment(GRADIO_TEMP_DIR=place):
        page = build(offer, Path(place))
        page.queue(max_size=limits.queue, default_concurrency_limit=1, api_open=False)
        _, url, shared = page.launch(
            server_name=host,
            server_port=number,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=limits.file_bytes,
            state_session_capacity=200,
            allowed_paths=[],
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            _frontend=False,  # no second look with three seconds' patience: a busy machine needs more
            strict_cors=True,
            theme=THEME,
            css=CSS,
            footer_links=[],
            app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None},
        )
        try:
            yield shared or url
        finally:
            page.close(verbose=False)


def free_port(host: str, port: int) -> int:
    """The port if nobody listens there, or a free one for 0. UserError for one that is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another --port or --host"
            ) from error
        return one.getsockname()[1]


def wait() -> None:
    """Until Ctrl-C, which is how a page is ended."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


@contextmanager
def _environment(**names: str) -> Iterator[None]:
    """Gradio reads these where it needs them; what stood there before comes back.

    It asks the page itself whether it is there: no proxy of the user's must stand between.
    """
    direct = {name: ",".join(filter(None, [os.environ.get(name), *LOOPBACK])) for name in ("no_proxy", "NO_PROXY")}
    wanted = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", **direct, **names}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
