"""`otel-cmb serve`: OTLP into the database."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from typing import Any

import click

from otel_cmb.cli.options import database_options

JAEGER_STORAGE = "127.0.0.1:17271"
END_SECONDS = 1.0


@click.command()
@click.option("--grpc", help="OTLP over gRPC at HOST:PORT, or `off`; port 0: a free one.  [default: 127.0.0.1:4317]")
@click.option("--http", help="OTLP over HTTP at HOST:PORT, or `off`.  [default: 127.0.0.1:4318]")
@click.option("--on-missing-run", type=click.Choice(["park", "create", "fail"]),
              help="Spans whose run is not in the database are kept, make it, or fail the request.  [default: park]")
@click.option("--record", type=click.Choice(["agents", "all"]), help="Spans that become events.  [default: agents]")
@click.option("--token-file", help="Bearer tokens, one per line, optionally followed by a session id.")
@click.option("--tls-cert", help="Certificate chain (PEM).")
@click.option("--tls-key", help="Private key (PEM).")
@click.option("--tls-client-ca", help="CA (PEM) of client certificates: mutual TLS, beside tokens.")
@click.option("--insecure", is_flag=True, default=None, help="Serve other hosts without TLS or without a token.")
@click.option("--jaeger-storage", is_flag=False, flag_value=JAEGER_STORAGE, metavar="[HOST:PORT]",
              help=f"Also serve Jaeger's remote storage API.  [default address: {JAEGER_STORAGE}]")
@click.option("--jaeger-url", help="Where traces can be looked at, e.g. http://127.0.0.1:16686.")
@click.option("--max-request-mib", type=int, help="Largest request, before and after decompression.  [default: 64]")
@click.option("--max-spans", type=int, help="Most spans in one request.  [default: 100000]")
@click.option("--max-concurrent", type=int, help="Requests worked on at once.  [default: 64]")
@click.option("--max-waiting-mib", type=int, help="Bytes of requests that wait for their commit.  [default: 256]")
@click.option("--max-memory-mib", type=int, help="Memory above which slow requests make room.  [default: 1024]")
@click.option("--max-connections", type=int, help="Open connections of each door.  [default: 1000]")
@click.option("--answer-timeout", type=float, help="Seconds a request waits for its commit.  [default: 5]")
@click.option("--read-timeout", type=float, help="Seconds a client may take to send a request.  [default: 30]")
@click.option("--drain-timeout", type=float, help="Seconds requests may take after SIGTERM.  [default: 10]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log on stderr.  [default: text]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option("--state-dir", help="Directory of the journal.")
@click.option("--config", "config_file", help="TOML file with the same settings in [serve].")
@database_options
def serve(
    *, config_file: str | None, database_url: str | None, schema: str | None, state_dir: str | None,
    on_missing_run: str | None, record: str | None, **flags: Any,
) -> None:
    """Receive OTLP over gRPC and HTTP and write it into the database.

    When it is ready, one line on stderr has the addresses: grpc=HOST:PORT http=HOST:PORT. The header (gRPC metadata)
    x-cmb-run-id names the run of a request. Every setting is also an environment variable,
    OTEL_EXPORTER_CMB_SERVE_..., and a key of the configuration file: see docs/serve.md.
    """
    from otel_cmb.receiver import logs
    from otel_cmb.receiver.server import serve as run
    from otel_cmb.receiver.settings import load

    general = {
        "database_url": database_url, "schema": schema, "state_dir": state_dir,
        "on_missing_run": on_missing_run, "record": record,
    }
    settings, pipeline_settings = load(flags, general, config_file=config_file)
    logs.set_up(settings.log_format, settings.log_level)
    # A process of our own: what the imports made is never garbage, and spans hold no cycles worth a search every 700
    # objects (docs/performance.md).
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    run(settings, pipeline_settings)
    _end()


def _end() -> None:
    """Threads that wait for a database which hangs keep the process no longer than this: everything is given back, what is
    not stored is in the journal."""
    deadline = time.monotonic() + END_SECONDS
    while any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(0)
        time.sleep(0.01)
