"""Names of top-level chats: plain where somebody counts, with a token of the process where nobody can."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry import baggage, context

import otel_cmb
from otel_cmb.instrumentation import chat_names

TOKEN = re.compile(r"chat_[0-9a-f]{6}_1")


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OTEL_CMB_RUN_ID", raising=False)
    monkeypatch.delenv(chat_names.NUMBERS, raising=False)
    chat_names.forget_names()
    yield
    chat_names.forget_names()


def test_a_process_counts_the_chats_of_its_own_runs() -> None:
    assert [chat_names.next_name() for _ in range(2)] == ["chat_1", "chat_2"]
    with otel_cmb.run():
        assert [chat_names.next_name() for _ in range(2)] == ["chat_1", "chat_2"]
    with otel_cmb.run():
        assert chat_names.next_name() == "chat_1"


def test_chats_in_a_run_of_somebody_else_carry_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    token = context.attach(baggage.set_baggage("cmb.run.id", "from another host"))
    try:
        assert TOKEN.fullmatch(chat_names.next_name())
    finally:
        context.detach(token)
    monkeypatch.setenv("OTEL_CMB_RUN_ID", "given")
    assert TOKEN.fullmatch(chat_names.next_name())


def test_what_otel_cmb_run_counts_is_for_its_run_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = chat_names.begin_numbers(str(tmp_path / "state"), "run-1")
    assert path is not None
    monkeypatch.setenv(chat_names.NUMBERS, path)
    monkeypatch.setenv("OTEL_CMB_RUN_ID", "run-1")
    assert [chat_names.next_name() for _ in range(3)] == ["chat_1", "chat_2", "chat_3"]
    with otel_cmb.run():
        assert chat_names.next_name() == "chat_1"
    assert chat_names.next_name() == "chat_4"
    chat_names.end_numbers(path)
    assert TOKEN.fullmatch(chat_names.next_name())  # a process that outlives the command
    assert not list((tmp_path / "state").iterdir())
