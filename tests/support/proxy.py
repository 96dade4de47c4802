"""A proxy before a server that can be cut, frozen and restored: an outage on demand, over real sockets."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Proxy:
    """Listens on 127.0.0.1 (any free port) and passes bytes to `target`: a (host, port) or the path of a unix socket.

    `cut()` resets every connection and refuses new ones; `freeze()` keeps connections and passes nothing;
    `restore()` ends both. The port stays the same throughout.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._threads: list[threading.Thread] = []
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.passed = 0
        """Bytes passed to the server so far."""

    def cut(self) -> None:
        self._close_listener()
        self._reset_all()

    def freeze(self) -> None:
        self._flowing.clear()

    def restore(self) -> None:
        self._flowing.set()
        if self._listener.fileno() < 0:
            self._listener = self._listen(self.port)

    def close(self) -> None:
        self._closed.set()
        self._flowing.set()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Proxy:  # noqa: PYI034
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        self._start(self._accept, listener)
        return listener

    def _close_listener(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()

    def _start(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self._threads = [*(item for item in self._threads if item.is_alive()), thread]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            self._start(self._pass, client, server)

    def _connect(self) -> socket.socket:
        if isinstance(self._target, str):
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.connect(self._target)
            return server
        return socket.create_connection(self._target, timeout=5)

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while True:
                readable, _, _ = select.select([client, server], [], [], 1.0)
                self._flowing.wait()
                for source in readable:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    self.passed += len(data) if source is client else 0
        except (OSError, ValueError):  # ValueError: select on a socket that cut() has closed
            return
        finally:
            with self._lock:
                self._open -= {client, server}
            client.close()
            server.close()

    def _reset_all(self) -> None:
        with self._lock:
            sockets = list(self._open)
        for item in sockets:
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
