"""What a hostile peer that nobody knows can take of a server: connections, open files, places, memory. An honest sender
is answered beside it. The long forms (`-m long`) do it with the defaults."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certificates
import grpc
import pytest
import requests
from fault_support import wait_for
from grpc_health.v1 import health_pb2, health_pb2_grpc
from receiver_support import FakePipeline, make_request, make_span, running
from support.h2 import Peer
from test_receiver_process import Server

from otel_cmb.receiver import gate
from otel_cmb.receiver.connections import Connection, Crowd
from otel_cmb.receiver.house import House
from otel_cmb.receiver.intake import Intake, Limits
from otel_cmb.receiver.settings import load

MIB = 1_048_576
BODY = make_request(*[make_span(n) for n in range(1, 513)]).SerializeToString()
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("tls"))


def connect(address: str, data: bytes = b"") -> socket.socket:
    host, _, port = address.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(data)
    return connection


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        while data := connection.recv(65_536):
            assert data
        return False
    except TimeoutError:
        return True
    except OSError:
        return False


def half_a_hello() -> bytes:
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()[:100]


def export(address: str, credentials: Any = None) -> None:
    """512 spans over a connection of their own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    opened = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
    with opened as channel:
        channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(BODY, timeout=30)


def post(url: str, **options: Any) -> int:
    return requests.post(url + "/v1/traces", BODY, headers=PROTOBUF, timeout=30, **options).status_code


def answered_within(seconds: float, send: Callable[[], object]) -> None:
    """As a client does that is told to come back."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert send() in (None, 200)
            return
        except (AssertionError, grpc.RpcError, requests.ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def closing(opened: list[Any]) -> Iterator[list[Any]]:
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_grpc_connections_are_limited_before_their_handshake(made: Path, tls: bool) -> None:
    flags = {"tls_cert": str(made / "server1.crt"), "tls_key": str(made / "server1.key")} if tls else {}
    with running(max_connections=20, **flags) as server:
        with closing([connect(server.grpc, half_a_hello() if tls else b"PRI * HT") for _ in range(60)]) as opened:
            wait_for(lambda: sum(map(is_open, opened)) <= 20)
            assert sum(map(is_open, opened)) == 20
        credentials = grpc.ssl_channel_credentials((made / "ca1.crt").read_bytes()) if tls else None
        answered_within(20, lambda: export(f"localhost:{server.receiver.addresses['grpc'].port}", credentials))


def test_silent_connections_make_room_for_those_that_ask() -> None:
    with running(max_connections=20) as server, requests.Session() as session:
        assert post(server.http) == 200
        assert session.get(server.http + "/healthz", timeout=30).status_code == 200
        with closing([connect(server.http) for _ in range(60)]) as opened:
            for _ in range(3):
                assert post(server.http) == 200
            wait_for(lambda: sum(map(is_open, opened)) <= 20)
            assert sum(map(is_open, opened)) >= 16
            # who has been served goes last
            assert session.get(server.http + "/healthz", timeout=30).status_code == 200


def test_unfinished_handshakes_of_https_are_limited_and_end(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.receiver.connections.HEADER_SECONDS", 1)
    flags = {"tls_cert": str(made / "server1.crt"), "tls_key": str(made / "server1.key")}
    with running(max_connections=20, **flags) as server:
        url = server.http.replace("http://127.0.0.1", "https://localhost")
        with closing([connect(server.http, half_a_hello() if n % 2 else b"") for n in range(60)]) as opened:
            wait_for(lambda: sum(map(is_open, opened)) <= 20)
            assert post(url, verify=str(made / "ca1.crt")) == 200
            wait_for(lambda: not any(map(is_open, opened)))


def test_slow_bodies_on_every_connection_make_room() -> None:
    head = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 100000\r\n\r\nx"
    with running(max_connections=20) as server:
        with closing([connect(server.http, head) for _ in range(20)]):
            wait_for(lambda: server.receiver.house.reading.inside == 20)
            answered_within(20, lambda: post(server.http))


def test_the_limit_of_open_files_bounds_the_connections(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def connections(files: int, **flags: Any) -> int:
        monkeypatch.setattr("otel_cmb.receiver.house.open_files", lambda: files)
        settings, _ = load(flags, env={})
        return House(settings, Intake(None, Limits())).connections  # type: ignore[arg-type]

    assert connections(65_536) == 1_000
    assert not caplog.messages
    assert connections(1_024) == 256
    assert "256 connections at once over each door, not 1000" in caplog.text
    assert connections(1_024, http="off") == 512
    assert connections(256, jaeger_storage="127.0.0.1:0") == 42


def unread_answers(server: Any) -> socket.socket:
    """A client that asks and asks, and takes no answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    host, _, port = server.http.removeprefix("http://").rpartition(":")
    connection.connect((host, int(port)))
    members = server.receiver._http._crowd
    wait_for(lambda: list(members._silent)[-1:])
    members._open[list(members._silent)[-1]].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 4000)
    number = len(members._unread)
    wait_for(lambda: len(members._unread) > number)
    return connection


def test_answers_that_nobody_takes_keep_nobody_out_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(max_connections=2) as server:
        members = server.receiver._http._crowd
        with closing([unread_answers(server) for _ in range(2)]):
            assert (len(members), len(members._unread)) == (2, 2)
            time.sleep(1.1)
            assert post(server.http) == 200
            assert len(members) <= 2
            monkeypatch.setattr("otel_cmb.receiver.connections.UNREAD_SECONDS", 1)
            wait_for(lambda: not members._unread, 20)


def test_a_client_that_reads_slowly_has_the_whole_answer() -> None:
    with running(max_connections=2) as server, closing([unread_answers(server)]) as (connection,):
        members = server.receiver._http._crowd
        assert len(members._unread) == 1
        connection.settimeout(30)
        answers = b""
        while members._unread:
            answers += connection.recv(65_536)
        while answers.count(b"\r\n\r\nok\n") < 4000:
            answers += connection.recv(65_536)
        wait_for(lambda: (len(members), len(members._resting), len(members._unread)) == (1, 1, 0))


def test_a_tls_peer_that_does_not_close_keeps_nobody_out(made: Path) -> None:
    """The end of TLS waits for the peer's: on Python 3.10 for ever."""
    context = ssl.create_default_context(cafile=str(made / "ca1.crt"))
    with running(max_connections=2, tls_cert=str(made / "server1.crt"), tls_key=str(made / "server1.key")) as server:
        def ended() -> socket.socket:
            connection = context.wrap_socket(connect(server.http), server_hostname="localhost")
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert b"200" in connection.recv(1000)
            return connection

        with closing([ended() for _ in range(2)]):
            time.sleep(1.1)
            assert len(server.receiver._http._crowd) == 2
            url = server.http.replace("http://127.0.0.1", "https://localhost")
            assert post(url, verify=str(made / "ca1.crt")) == 200


@pytest.mark.parametrize(("tls", "sweeps"), [(False, {0}), (True, {1, 2, 3})])
def test_connections_that_end_early_do_not_keep_the_collector_at_work(
    monkeypatch: pytest.MonkeyPatch, tls: bool, sweeps: set[int]
) -> None:
    looks = []
    monkeypatch.setattr("otel_cmb.receiver.connections.SWEEP_SECONDS", 0.01)
    monkeypatch.setattr("otel_cmb.receiver.connections.gc.collect", lambda: (looks.append(1), time.sleep(0.1)))

    async def flood() -> None:
        members = Crowd(1000, lambda: False, tls=tls)
        until = asyncio.get_running_loop().time() + 1.2
        while asyncio.get_running_loop().time() < until:
            for _ in range(256):
                with Connection() as one:
                    assert members.let_in(one)
                    one.crowd = members
            assert not len(members)
            await asyncio.sleep(0.001)

    asyncio.run(flood())
    assert len(looks) in sweeps  # 0.1 s each, 0.4 between two


# -- places and bytes -------------------------------------------------------------------------------------------------


def test_calls_that_send_nothing_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.receiver.house.READING", 20)
    with running() as server, closing([Peer(server.grpc)]) as (peer,):
        for n in range(20):
            peer.call(2 * n + 1)
        wait_for(lambda: server.receiver.house.reading.inside == 20)
        answered_within(20, lambda: export(server.grpc))
        answered_within(20, lambda: post(server.http))
        peer.look(1)
        assert peer.ended
        assert server.receiver.house.reading.inside == 20 - len(peer.ended)
        assert server.receiver.intake.requests["grpc", "traces", "overloaded"] >= 1


def test_slow_bodies_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.receiver.memory.resident", lambda: 0)  # what the tests before took is not at stake here
    head = (b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
            b"content-length: %d\r\n\r\n" % (16 * MIB))
    with running(max_memory_mib=64, max_request_mib=16) as server:
        room = server.receiver.house.reading
        with closing([connect(server.http, head) for _ in range(4)]) as slow:
            for connection in slow:
                connection.sendall(b"x" * (15 * MIB // 2))  # 30 MiB of 32
            wait_for(lambda: room.bytes == 30 * MIB)
            with closing([connect(server.http, head)]) as (last,):
                time.sleep(0.6)
                last.sendall(b"x" * (4 * MIB))
                wait_for(lambda: room.turned_out)
                assert room.bytes <= 32 * MIB
                [told, *_], _, _ = select.select(slow, [], [], 30)
                assert b" 429 " in told.recv(500)
                answered_within(20, lambda: post(server.http))
                answered_within(20, lambda: export(server.grpc))


def test_a_call_that_is_turned_out_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with running() as server, grpc.insecure_channel(server.grpc) as channel:
        wait = threading.Event()

        def never() -> Iterator[bytes]:
            wait.wait(30)
            yield b""

        call = channel.stream_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export").future(never(), timeout=30)
        wait_for(lambda: server.receiver.house.reading.arriving)
        monkeypatch.setattr("otel_cmb.receiver.memory.resident", lambda: 1 << 40)
        error = call.exception(30)
        wait.set()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "google.rpc.retryinfo-bin" in dict(error.trailing_metadata())
        assert "requests that arrive slowly are told to come back, 1 now" in caplog.text
        export(server.grpc)  # who is not slow is served all the same
        wait_for(lambda: server.receiver.house._watching is None)
        assert server.receiver.house.reading.inside == 0


@pytest.mark.parametrize("short", ["requests", "bytes"])
def test_who_needs_longer_than_a_place_lasts_is_through_some_time(monkeypatch: pytest.MonkeyPatch, short: str) -> None:
    """150 honest senders behind slow lines, room for 100: each needs 5 s and comes back 1 s after it was turned out. Were
    the oldest turned out each time, not one would ever be through."""
    now = [0.0]
    monkeypatch.setattr(gate, "monotonic", lambda: now[0])
    monkeypatch.setattr(gate, "_chance", random.Random(1))
    room = gate.Room(100, 10**9) if short == "requests" else gate.Room(10**9, 100)
    ahead: list[tuple[float, int, gate.Place | None]] = [(n / 30, n, None) for n in range(150)]
    through = set()
    while ahead[0][0] < 120:
        now[0], sender, place = heapq.heappop(ahead)
        if place is None:
            place = room.enter("http")
            if place is not None and not place.add(1):
                place.leave()
                place = None
            heapq.heappush(ahead, (now[0] + (1.0 if place is None else 5.0), sender, place))
            continue
        if not place.taken:
            place.arrived()
            through.add(sender)
        place.leave()
        heapq.heappush(ahead, (now[0] + 1.0, sender, None))
    assert len(through) > 140
    assert room.inside <= 150
    assert room.bytes <= 150
    assert room.turned_out


def test_memory_that_is_not_theirs_turns_out_slow_senders_only_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """1 Mbit/s, and a process that has more memory than it should for another reason: every try used to be turned out."""
    monkeypatch.setattr("otel_cmb.receiver.memory.resident", lambda: 2048 * MIB)
    piece, pieces = BODY[: len(BODY) // 20 + 1], range(0, len(BODY), len(BODY) // 20 + 1)

    def slowly() -> Iterator[bytes]:
        for start in pieces:
            yield BODY[start : start + len(piece)]
            time.sleep(0.1)

    with running() as server:
        answers = []
        for _ in range(4):
            with contextlib.suppress(requests.ConnectionError):
                answers.append(requests.post(f"{server.http}/v1/traces", slowly(), headers=PROTOBUF, timeout=30).status_code)
            if answers[-1:] == [200]:
                break
            time.sleep(0.2)
        assert answers[-1:] == [200]
        assert "not for requests that arrive" in caplog.text


def test_a_house_that_is_in_order_again_holds_to_its_limit_again() -> None:
    settings, _ = load({"max_memory_mib": 1000}, env={})
    house = House(settings, Intake(None, Limits()))  # type: ignore[arg-type]
    house._weigh(1500 * MIB)
    house._above_since = time.monotonic() - 2
    early = house.reading.enter("grpc")
    assert early is not None
    early.since -= 3
    house._weigh(1500 * MIB)
    assert (house._allowed, early.taken) == (1000 * MIB, True)  # one that was there before may be the reason
    house._weigh(1500 * MIB)
    assert house._allowed == 1750 * MIB
    for found, allowed in ((1700, 1750), (1200, 1450), (1400, 1450), (600, 1000)):
        house._weigh(found * MIB)
        assert house._allowed == allowed * MIB


def test_a_call_that_is_cancelled_keeps_its_bytes_while_they_are_worked_on() -> None:
    pipeline = FakePipeline()
    pipeline.hold.clear()
    with running(pipeline) as server, grpc.insecure_channel(server.grpc) as channel:
        room, working = server.receiver.house.reading, server.receiver.house.working
        call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export").future(BODY, timeout=30)
        wait_for(lambda: pipeline.spans)
        call.cancel()
        time.sleep(0.3)
        assert (working.inside, room.inside, room.bytes) == (1, 1, len(BODY))
        pipeline.hold.set()
        wait_for(lambda: not working.inside)
        wait_for(lambda: (room.inside, room.bytes) == (0, 0))


# -- the memory of a process ------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    servers: list[Server] = []

    def begin(*flags: str) -> Server:
        servers.append(Server(tmp_path, *flags))
        return servers[-1]

    yield begin
    for server in servers:
        server.process.kill()
        server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


def memory(server: Server, name: str = "VmHWM") -> int:
    """MiB"""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def unfinished(address: str, calls: int, size: int) -> None:
    """Calls that say they bring 60 MiB and send only so many bytes; honest requests beside them."""
    piece = b"\0" * size
    failures: list[BaseException] = []
    done = threading.Event()

    def honest() -> None:
        try:
            while not done.wait(0.1):
                answered_within(30, lambda: export(address))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=honest)
    with closing([Peer(address) for _ in range(20)]) as peers:
        thread.start()
        try:
            for n in range(calls):
                peer, stream = peers[n % 20], 2 * (n // 20) + 1
                peer.call(stream)
                peer.begin_message(60 * MIB, stream)
                peer.data(piece, stream, seconds=5)
        finally:
            done.set()
            thread.join(60)
    assert not failures


def test_messages_that_never_end_do_not_fill_the_memory(start: Any) -> None:
    server = start("--max-memory-mib", "96", "--on-missing-run", "create")
    address, _ = server.ready()
    unfinished(address, calls=64, size=8 * MIB)
    assert memory(server) < 350  # 512 more without
    wait_for(lambda: memory(server, "VmRSS") < 140)
    assert "requests that arrive slowly are told to come back" in server.stderr


@pytest.mark.long
@pytest.mark.timeout(600)
def test_gigabytes_of_messages_that_never_end(start: Any) -> None:
    server = start("--on-missing-run", "create")
    address, _ = server.ready()
    unfinished(address, calls=200, size=50 * MIB)
    assert memory(server) < 1_600  # 10,000 more without
    wait_for(lambda: memory(server, "VmRSS") < 300)


def come_and_go(made: Path, start: Any, connections: int, rounds: int) -> Server:
    server: Server = start("--tls-cert", str(made / "server1.crt"), "--tls-key", str(made / "server1.key"),
                           "--max-connections", str(connections // 2))
    _, url = server.ready()
    half = half_a_hello()
    for _ in range(rounds):
        with closing([connect(url, half) for _ in range(connections)]):
            time.sleep(0.5)
        time.sleep(1.5)
    url = url.replace("http://127.0.0.1", "https://localhost")
    assert post(url, verify=str(made / "ca1.crt")) == 200
    return server


def test_handshakes_that_never_end_leave_no_memory_behind(made: Path, start: Any) -> None:
    server = come_and_go(made, start, connections=600, rounds=3)
    wait_for(lambda: memory(server, "VmRSS") < 180)  # 540 more without: a quarter of a MiB each


@pytest.mark.long
def test_thousands_of_handshakes_that_never_end(made: Path, start: Any) -> None:
    server = come_and_go(made, start, connections=2_000, rounds=10)
    assert memory(server) < 900  # 5,000 more without
    wait_for(lambda: memory(server, "VmRSS") < 200)


def test_a_flood_of_connections_leaves_files_for_journal_and_database(start: Any) -> None:
    server = start("--max-connections", "50", "--on-missing-run", "create")
    address, url = server.ready()
    with closing([connect(target) for _ in range(300) for target in (address, url)]):
        time.sleep(1)
        assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 200
        assert post(url) == 200
    answered_within(20, lambda: export(address))




# -- the health, which needs no token ---------------------------------------------------------------------------------


def test_questions_about_the_health_have_places_and_those_who_watch_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_cmb.receiver.grpc_door.MOST_WATCHING", 2)
    with running(read_timeout=1) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        question = health_pb2.HealthCheckRequest(service="opentelemetry.proto.collector.trace.v1.TraceService")
        serving = health_pb2.HealthCheckResponse.SERVING
        assert stub.Check(question, timeout=20).status == serving
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\xff", timeout=20)
        watching = [stub.Watch(question, timeout=20) for _ in range(2)]
        assert [next(one).status for one in watching] == [serving] * 2
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            next(stub.Watch(question, timeout=20))
        watching[0].cancel()
        answered_within(20, lambda: 200 if next(stub.Watch(question, timeout=20)).status == serving else 0)
        with closing([Peer(server.grpc)]) as (peer,):
            peer.call(1, path=b"/grpc.health.v1.Health/Check")
            peer.begin_message(60 * MIB)
            wait_for(lambda: server.receiver.house.reading.arriving == 1)
            for _ in range(100):
                peer.look(0.1)
                if peer.ended:
                    break
            assert peer.ended  # its time was over
        assert server.receiver.house.reading.inside == 0
