"""No password is shown, however the URL that holds it was written; what helps to find the mistake is."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner
from fault_support import agent_span, pipeline_of
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from otel_cmb import config
from otel_cmb.cli import cli
from otel_cmb.config import safe_text, safe_url
from otel_cmb.database_url import check_url
from otel_cmb.errors import DatabaseURLError


@pytest.mark.parametrize(("url", "shown"), [
    ("postgresql+psycopg://ann:S3c/retPw@/db?host=%2Ftmp", "postgresql+psycopg://ann:***@/db?host=%2Ftmp"),
    ("postgresql://ann:S3c retPw@h/db", "postgresql://ann:***@h/db"),
    ("postgresql://ann:S3c?retPw@h/db?sslmode=require", "postgresql://ann:***@h/db?sslmode=require"),
    ("postgresql://ann:S3cr@etPw@h", "postgresql://ann:***@h"),
    ("postgresql://ann:S3cr@et?Pw@h/db", "postgresql://ann:***@h/db"),
    ("postgresql://ann@corp:S3cretPw@h/db", "postgresql://ann@corp:***@h/db"),
    ("postgresql://ann:S3cretPw@[::1]:5432/db", "postgresql://ann:***@[::1]:5432/db"),
    ("postgresql://:S3cretPw@h/db", "postgresql://:***@h/db"),
    ("postgresql://ann:S3cretPw/db", "postgresql://ann:***"),  # the host was forgotten
    ("postgresql://ann/x:S3cretPw@h/db", "postgresql://ann/x:***@h/db"),
    ("postgresql+psycopg//ann:S3cretPw@h/db", "postgresql+psycopg//ann:***@h/db"),
    ("postgresql+psycopg:/ann:S3cretPw@h/db", "postgresql+psycopg:***@h/db"),
    ("postgresql:ann:S3cretPw@h/db", "postgresql:***@h/db"),
    ("ann:S3cretPw@h/db", "ann:***@h/db"),
    ("postgresql:///db?user=ann&password=S3c ret@Pw&sslmode=x", "postgresql:///db?user=ann&password=***&sslmode=x"),
    ("postgresql:///db?user=ann&pass%77ord=S3cretPw", "postgresql:///db?user=ann&pass%77ord=***"),
    ("postgresql:///db?dsn=postgresql%3A%2F%2Fann%3AS3cretPw%40h", "postgresql:///db?dsn=***"),
    ("host=h password=S3cretPw user=ann", "host=h password=*** user=ann"),
    (r"host=h password = 'S3c \' retPw' user=ann", "host=h password = *** user=ann"),
    ("sqlite+pysqlcipher://:S3cretPw@/file.db", "sqlite+pysqlcipher://:***@/file.db"),
])
def test_the_password_is_hidden(url: str, shown: str) -> None:
    assert safe_url(url) == safe_url(shown) == shown


@pytest.mark.parametrize("url", [
    "", "sqlite://", "sqlite:///otel_cmb.db", "sqlite:////home/ann@corp/a:b@c.db", "sqlite:///C:/data/x.db", r"C:\data\x.db",
    "postgresql://h:5432/db", "postgresql://h:5432", "postgresql://[::1]:5432/db", "postgresql://ann@h/db", "otel_cmb.db",
    "postgresql://ann@h/db?passfile=/home/ann/.pgpass&keepalives=1&host=a&host=b",
])
def test_what_holds_no_password_is_shown_whole(url: str) -> None:
    assert safe_url(url) == url


def test_what_no_terminal_can_show_is_escaped() -> None:
    assert safe_url("sqlite:////tmp/raw\udcff/x.db") == r"sqlite:////tmp/raw\udcff/x.db"


words = st.text("aZ9:/@?=&# %[]+", max_size=12)


@given(words, words, st.sampled_from(["h/db", "h:5432/db?sslmode=require", "[::1]/db", "/db?host=%2Ftmp"]))
def test_what_sqlalchemy_takes_for_the_password_is_hidden(user: str, password: str, where: str) -> None:
    """Escaped or not."""
    password += "S3cretPw"
    escaped = URL.create("postgresql", user, password, "h", 5432, "db").render_as_string(hide_password=False)
    assert "S3cretPw" not in safe_url(escaped)
    raw = f"postgresql://{user}:{password}@{where}"
    try:
        found = make_url(raw)
    except (ArgumentError, ValueError):
        return
    if found.password is not None and "S3cretPw" in found.password:
        assert "S3cretPw" not in safe_url(raw)


@pytest.mark.parametrize(("said", "shown"), [
    ("connection to postgresql://ann:S3c/ret@Pw@h/db failed", "connection to postgresql://ann:***@h/db failed"),
    ("could not parse 'host=h password=S3cretPw dbname=x'", "could not parse 'host=h password=*** dbname=x'"),
    ('password authentication failed for user "ann@corp"', 'password authentication failed for user "ann@corp"'),
    ("see https://example.org/@user", "see https://example.org/@user"),
])
def test_what_a_driver_says(said: str, shown: str) -> None:
    assert safe_text(said) == shown


def test_settings_can_be_shown() -> None:
    assert "S3cretPw" not in repr(config.load(database_url="postgresql://ann:S3cretPw@h/db"))


def test_an_at_sign_in_a_password_is_told_before_anything_connects() -> None:
    with pytest.raises(DatabaseURLError, match="write it as %40") as caught:
        check_url(config.load(database_url="postgresql://ann:S3cr@etPw@h/db"))
    assert "S3cr" not in str(caught.value) and "etPw" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql+psycopg//ann:S3cr@etPw@h/db", "postgresql://ann:S3cr@etPw@h/db"])
def test_a_url_that_cannot_be_used_is_shown_nowhere(
    url: str, state_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_CMB_STATE_DIR", str(state_dir))
    with caplog.at_level(logging.DEBUG), pipeline_of(url, state_dir) as pipeline:
        said = ""
        try:
            pipeline.accept([agent_span()])
        except DatabaseURLError as error:
            said = str(error)
        pipeline.flush(0.5)
        assert "etPw" not in said + repr(pipeline.stats())
    for command in (["doctor"], ["db", "check"], ["runs"], ["parked", "list"], ["prune", "--older-than", "9d"]):
        answer = CliRunner().invoke(cli, [*command, "--database-url", url])
        assert "ann:***@h" in answer.output + str(answer.exception)
        assert "S3cr" not in answer.output + repr(answer.exception) and "etPw" not in answer.output + repr(answer.exception)
    assert "S3cr" not in caplog.text and "etPw" not in caplog.text


def test_a_slash_in_a_password_that_works_is_shown_nowhere(
    private_postgresql, state_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_CMB_STATE_DIR", str(state_dir))
    private_postgresql.execute("CREATE ROLE slash LOGIN SUPERUSER PASSWORD 'S3c/retPw'")
    with private_postgresql.database() as database:
        url = f"postgresql+psycopg://slash:S3c/retPw@/{database.database}?host={database.query['host']}"
        with pipeline_of(url, state_dir) as pipeline:
            pipeline.accept([agent_span(), agent_span(2, run="nope")])
            assert pipeline.flush(10)
            assert pipeline.stats().parked == {"run_not_found": 1}
        for command in (["doctor"], ["db", "check"], ["parked", "list"], ["prune", "--older-than", "9d"]):
            answer = CliRunner().invoke(cli, [*command, "--database-url", url])
            assert "slash:***@" in answer.output
            assert "retPw" not in answer.output + repr(answer.exception)
    assert "slash:***@" in caplog.text
    assert "retPw" not in caplog.text
