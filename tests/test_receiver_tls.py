"""TLS and client certificates on every door, and files that change under a running server."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import shutil
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certificates
import grpc
import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from receiver_support import Running, make_request, make_span, running

from otel_cmb.errors import ConfigurationError
from otel_cmb.receiver.settings import load
from otel_cmb.receiver.tls import TlsFiles

BODY = make_request(make_span(1)).SerializeToString()
HEADERS = {"content-type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("tls"))


class Files:
    """The files a server was given; they change as those of a renewed certificate do."""

    def __init__(self, made: Path, place: Path) -> None:
        self._made, self._place = made, place
        self.put(cert="server1.crt", key="server1.key", client_ca="ca1.crt")

    def path(self, what: str) -> str:
        return str(self._place / f"{what}.pem")

    def put(self, **files: str) -> None:
        """Each is replaced at once, as renewing programs do."""
        for what, name in files.items():
            shutil.copy(self._made / name, self._place / "new")
            os.replace(self._place / "new", self.path(what))

    def flags(self, *, mutual: bool = False) -> dict[str, str]:
        client_ca = {"tls_client_ca": self.path("client_ca")} if mutual else {}
        return {"tls_cert": self.path("cert"), "tls_key": self.path("key"), **client_ca}


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr("otel_cmb.receiver.tls.CHECK_SECONDS", 0.05)
    return Files(made, tmp_path)


def channel(server: Running, made: Path, ca: int, client: int | None = None) -> grpc.Channel:
    pair = () if client is None else ((made / f"client{client}.key").read_bytes(), (made / f"client{client}.crt").read_bytes())
    credentials = grpc.ssl_channel_credentials((made / f"ca{ca}.crt").read_bytes(), *pair)
    return grpc.secure_channel(
        server.grpc, credentials, [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)])


def export(opened: grpc.Channel) -> Any:
    return TraceServiceStub(opened).Export(make_request(make_span(1)), timeout=10)


def exported(server: Running, made: Path, ca: int, client: int | None = None) -> bool:
    with channel(server, made, ca, client) as opened:
        try:
            export(opened)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
                raise
            return False
        return True


def context(made: Path, ca: int, client: int | None = None) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(made / f"ca{ca}.crt"))
    if client is not None:
        found.load_cert_chain(made / f"client{client}.crt", made / f"client{client}.key")
    return found


def https(server: Running, made: Path, ca: int, client: int | None = None) -> http.client.HTTPSConnection:
    host, port = server.http.removeprefix("http://").split(":")
    return http.client.HTTPSConnection(host, int(port), timeout=10, context=context(made, ca, client))


def post(connection: http.client.HTTPSConnection) -> int:
    connection.request("POST", "/v1/traces", BODY, HEADERS)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def posted(server: Running, made: Path, ca: int, client: int | None = None) -> bool:
    with contextlib.closing(https(server, made, ca, client)) as connection:
        try:
            return post(connection) == 200
        except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
            return False


def doors(server: Running) -> list[str]:
    return [server.grpc, server.http.removeprefix("http://"), str(server.receiver.addresses["jaeger"])]


def shown(address: str, made: Path) -> str:
    """The name of the certificate that a new connection is shown; this client names no server (SNI)."""
    host, port = address.split(":")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    for n in (1, 2):
        trusting.load_verify_locations(made / f"ca{n}.crt")
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection((host, int(port)), timeout=10) as raw, trusting.wrap_socket(raw) as connection:
        certificate = connection.getpeercert()
    assert certificate is not None
    return str(dict(part[0] for part in certificate["subject"])["commonName"])  # type: ignore[misc, arg-type]


def all_show(server: Running, made: Path) -> set[str]:
    time.sleep(0.1)
    return {shown(door, made) for door in doors(server)}


@pytest.fixture
def server(files: Files) -> Iterator[Running]:
    with running(jaeger_storage="127.0.0.1:0", web=True, **files.flags()) as found:
        yield found


def test_tls_on_both_doors(server: Running, made: Path) -> None:
    assert exported(server, made, 1)
    assert posted(server, made, 1)
    assert len(server.pipeline.spans) == 2
    assert not exported(server, made, 2)
    assert not posted(server, made, 2)
    with grpc.insecure_channel(server.grpc) as plain, pytest.raises(grpc.RpcError) as caught:
        export(plain)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    with pytest.raises(requests.ConnectionError):
        requests.post(server.http + "/v1/traces", data=BODY, headers=HEADERS, timeout=10)
    assert len(server.pipeline.spans) == 2


def test_old_tls_is_not_spoken(server: Running, made: Path) -> None:
    host, port = server.http.removeprefix("http://").split(":")
    old = context(made, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        pytest.raises(ssl.SSLError),
        old.wrap_socket(raw, server_hostname="localhost"),
    ):
        pass


def test_a_renewed_certificate_is_shown_to_new_connections_and_the_open_ones_go_on(
    server: Running, files: Files, made: Path
) -> None:
    with channel(server, made, 1) as open_channel, contextlib.closing(https(server, made, 1)) as open_http:
        export(open_channel)
        assert post(open_http) == 200
        tcp = open_http.sock
        files.put(cert="server2.crt", key="server2.key")
        assert all_show(server, made) == {"server2"}
        assert exported(server, made, 2)
        assert posted(server, made, 2)
        # These trust the first authority only: a second handshake would fail.
        assert not exported(server, made, 1)
        assert not posted(server, made, 1)
        for _ in range(3):
            export(open_channel)
            assert post(open_http) == 200
        assert open_http.sock is tcp
        assert len(server.pipeline.spans) == 10
    files.put(cert="server1.crt", key="server1.key")
    assert all_show(server, made) == {"server1"}


def test_files_that_cannot_be_used_leave_what_was_there(
    server: Running, files: Files, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> str:
        found = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)
        caplog.clear()
        return found

    assert all_show(server, made) == {"server1"}
    assert said() == ""
    Path(files.path("cert")).write_text("no certificate")
    assert all_show(server, made) == {"server1"}
    first = said()
    assert first.count("stays in use") == 1  # once, not at each of the connections
    assert files.path("cert") in first
    assert all_show(server, made) == {"server1"}
    assert said() == ""
    files.put(cert="server2.crt")  # half of a renewal: the key is the old one
    assert all_show(server, made) == {"server1"}
    assert "stays in use" in said()
    files.put(cert="server1.crt", key="encrypted.key")
    assert all_show(server, made) == {"server1"}
    assert "passphrase" in said()
    os.unlink(files.path("key"))
    assert all_show(server, made) == {"server1"}
    assert "stays in use" in said()
    files.put(cert="server2.crt", key="server2.key")
    assert all_show(server, made) == {"server2"}
    assert said() == ""


def test_mutual_tls_lets_only_known_clients_in(files: Files, made: Path) -> None:
    with running(**files.flags(mutual=True)) as server:
        assert exported(server, made, 1, client=1)
        assert posted(server, made, 1, client=1)
        for client in (None, 2):
            assert not exported(server, made, 1, client)
            assert not posted(server, made, 1, client)
        assert len(server.pipeline.spans) == 2


def test_an_authority_that_leaves_the_file_lets_nobody_in_any_more(files: Files, made: Path) -> None:
    with running(**files.flags(mutual=True)) as server:
        host, port = server.http.removeprefix("http://").split(":")
        keeping = context(made, 1, client=1)
        older = context(made, 1, client=1)
        older.maximum_version = ssl.TLSVersion.TLSv1_2

        def handshake(session: ssl.SSLSession | None, keeping: ssl.SSLContext) -> tuple[ssl.SSLSession | None, bytes]:
            """The session a client could go on with, and the answer to its request."""
            with socket.create_connection((host, int(port)), timeout=10) as raw:
                try:
                    with keeping.wrap_socket(raw, server_hostname="localhost", session=session) as connection:
                        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                        answer = connection.recv(1_000)
                        return connection.session, answer
                except (ssl.SSLError, ConnectionError):
                    return None, b""

        with channel(server, made, 1, client=1) as open_channel:
            export(open_channel)
            session, answer = handshake(None, keeping)
            assert b"200" in answer
            assert handshake(None, older)[1] == b""  # before TLS 1.3 a session could be gone on with
            files.put(client_ca="ca2.crt")
            time.sleep(0.1)
            assert exported(server, made, 1, client=2)
            assert posted(server, made, 1, client=2)
            assert not exported(server, made, 1, client=1)
            assert not posted(server, made, 1, client=1)
            assert handshake(session, keeping)[1] == b""  # nor by going on with what was agreed before
            export(open_channel)  # what is open stays open


@pytest.mark.parametrize(
    "flags", [{"tls_cert": "x"}, {"tls_key": "x"}, {"tls_client_ca": "x"}, {"tls_cert": "x", "tls_key": "x"}]
)
def test_half_of_tls_is_refused_at_the_start(flags: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        load(flags, env={})


@pytest.mark.parametrize(
    "files", [("ca1.key", "server1.key", None), ("server1.crt", "server2.key", None), ("server1.crt", "encrypted.key", None),
              ("server1.crt", "server1.key", "ca1.key"), ("server1.crt", "nowhere", None)]
)
def test_files_that_do_not_fit_are_refused_at_the_start(made: Path, files: tuple[str | None, ...]) -> None:
    with pytest.raises(ConfigurationError, match="TLS cannot be served"):
        TlsFiles(*(None if name is None else str(made / name) for name in files))  # type: ignore[arg-type]
