"""The server of the page: its socket, its address, what it prints."""

import argparse
import os
import socket
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console
from rich.text import Text

from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.web.app import create_app
from rlhf_lightning.labeling.web.desk import Desk
from rlhf_lightning.labeling.web.guard import LOOPBACK, Site, host_name
from rlhf_lightning.labeling.web.preview import template_preview


def serve(
    store: LabelStore,
    instructions: Path,
    options: argparse.Namespace,
    console: Console,
    starts: Mapping[str, str],
    links: Mapping[str, str],
) -> None:
    """Serve until Ctrl-C.

    Args:
        store: Tasks and answers.
        instructions: The Markdown file that labelers read.
        options: Those of the command line.
        console: Where addresses are printed.
        starts: Secrets of links that hold as long as this server runs, by labeler.
        links: Secrets of links that were made now, by labeler.
    """
    listener = bound(options.host, options.port, console)
    name = options.public or (f"[{options.host}]" if ":" in options.host else options.host)
    hosts = frozenset({str(host_name(name))}) | (frozenset() if options.public else LOOPBACK)
    site = Site(hosts, secure=options.behind_proxy or options.tls_cert is not None)
    address = f"{site.scheme}://{name}" + ("" if options.behind_proxy else f":{listener.getsockname()[1]}")
    preview = template_preview(options.model) if options.model else None
    app = create_app(Desk(store, instructions, site, preview, {secret: name for name, secret in starts.items()}))
    for labeler, secret in {**starts, **links}.items():
        console.print(Text(f"{labeler}: {address}/l/{secret}"))
    console.print("A link signs in whoever has it; give each labeler their own. Ctrl-C ends, and loses nothing.")
    if options.browser and not options.public:
        _open(f"{address}/l/{next(iter(starts.values()))}", instructions.with_name(".open.html"))
    settings: dict[str, Any] = (
        {"ssl_certfile": options.tls_cert, "ssl_keyfile": options.tls_key} if options.tls_cert else {}
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        proxy_headers=options.behind_proxy,
        h11_max_incomplete_event_size=64_000,
        limit_concurrency=200,
        **settings,
    )
    uvicorn.Server(config).run(sockets=[listener])


def bound(host: str, port: int, console: Console) -> socket.socket:
    """A socket at this port, or where that is taken at a free one, which is said."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        if not port:
            raise OSError(f"nothing can be served at {host} ({error}); name another --host.") from error
        listener.close()
        free = bound(host, 0, console)
        console.print(f"Port {port} cannot be had ({error.strerror}); the page is at port {free.getsockname()[1]}.")
        return free
    return listener


def _open(link: str, page: Path) -> None:
    """Open a link in the browser by way of a file of this user: what stands in a command, everybody here can see."""
    page.unlink(missing_ok=True)
    with os.fdopen(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={link}"><a href="{link}">rlhf-label</a>')
    webbrowser.open(page.absolute().as_uri())
