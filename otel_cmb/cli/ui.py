"""`otel-cmb ui`: the runs in a browser."""

from __future__ import annotations

import ipaddress
import socket
import sys

import click

from otel_cmb.cli.options import database_options
from otel_cmb.errors import ConfigurationError

__all__ = ["ui"]


@click.command()
@database_options
@click.option("--http", "address", default="127.0.0.1:8765", show_default=True,
              help="Address to serve on; port 0 picks a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option("--token-file", type=click.Path(dir_okay=False), default=None,
              help="Tokens that may read: one per line, optionally followed by the one session it may see.")
@click.option("--jaeger-url", default=None, help="Where traces can be looked at, e.g. http://127.0.0.1:16686.")
@click.option("--insecure", is_flag=True, help="Serve on an address others can reach, without a token.")
def ui(
    *, database_url: str | None, schema: str | None, address: str, open_browser: bool, token_file: str | None,
    jaeger_url: str | None, insecure: bool,
) -> None:
    """Show the runs in a browser, live. Read-only."""
    import uvicorn

    from otel_cmb.reader import open_reader
    from otel_cmb.receiver.tokens import TokenFile
    from otel_cmb.ui.app import create_app
    from otel_cmb.ui.guard import LOOPBACK

    host, port = _address(address)
    tokens = None if token_file is None else TokenFile(token_file)
    loopback = _is_loopback(host)
    if not loopback and tokens is None and not insecure:
        raise ConfigurationError(
            f"--http {address}: others can reach that address; give --token-file, or --insecure if all of them may read"
        )
    reader = open_reader(database_url, schema=schema)
    first = [reader]  # opened before anything is served, so that a wrong URL is told at once
    app = create_app(
        lambda: first.pop() if first else open_reader(database_url, schema=schema), token=tokens, jaeger_url=jaeger_url,
        hosts=LOOPBACK | {host} if loopback else None,
    )
    listener = _listen(host, port, address)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}/"
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1, ws="none",
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            click.echo(f"otel-cmb ui: {url}  ({reader.where})", err=True)
            if open_browser:
                import webbrowser

                webbrowser.open(url)

    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        listener.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ConfigurationError(f"--http: found {text!r}, expected HOST:PORT, e.g. 127.0.0.1:8765")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"--http {address}: cannot be served on: {error.strerror or error}; "
            "choose another, or port 0 for a free one"
        ) from None
    listener.listen(128)
    return listener
