"""A real pgbouncer in transaction mode before a server, where the program is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")


@contextmanager
def pooled(url: URL, *, size: int = 2) -> Iterator[URL]:
    """The same database behind pgbouncer with `size` server connections, whatever the number of clients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="otel-cmb-pgbouncer-"))
    host = url.query.get("host") or url.host
    target = f"host={host} port={url.port or 5432} dbname={url.database} user={url.username}"
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n{url.database} = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {size}\n"
        f"max_client_conn = 100\nlogfile = {directory}/log\npidfile = {directory}/pid\n"
    )
    command = [str(PROGRAM), "-q", str(directory / "pgbouncer.ini")]
    if os.geteuid() == 0:  # pgbouncer refuses to run as root; the embedded server's socket is its own user's only
        owner = Path(host).owner() if str(host).startswith("/") else "nobody"
        for path in (directory, directory / "pgbouncer.ini"):
            shutil.chown(path, owner)
        command[1:1] = ["-u", owner]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    log = directory / "log"
                    raise RuntimeError(f"pgbouncer did not start: {log.read_text() if log.exists() else ''}") from None
                time.sleep(0.05)
        query = {name: value for name, value in url.query.items() if name != "host"}
        yield url.set(host="127.0.0.1", port=port, query=query)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)
