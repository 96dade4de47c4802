"""Which database URLs can never work, and what is said of them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest

from otel_cmb import config, database_url
from otel_cmb.errors import DatabaseURLError


def settings_for(url, **values):
    return config.load(database_url=url, **values)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "cannot be read"),
        ("postgresql://user:hidden-word@host:port/db", "cannot be read"),
        ("mysql://user:hidden-word@host/db", "supported are sqlite"),
        ("postgresql+asyncpg://user:hidden-word@host/db", "supported are sqlite"),
        ("sqlite+aiosqlite:///file.db", "supported are sqlite"),
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in-memory"),
        ("sqlite:///file:x.db?uri=true", "plain path"),
        ("sqlite://relative/file.db", "three slashes"),
        ("sqlite:////no/such/directory/x.db", "does not exist"),
        ("sqlite:////dev/null", "not a regular file"),
        ("sqlite:////tmp", "is a directory"),
    ],
)
def test_a_url_that_cannot_work_is_one_sentence(url, words):
    with pytest.raises(DatabaseURLError, match=words) as caught:
        database_url.check_url(settings_for(url))
    assert "hidden-word" not in str(caught.value)
    assert "hidden-word" not in repr(caught.value.__cause__)


def test_a_file_that_is_something_else_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database")
    with pytest.raises(DatabaseURLError, match="is not a SQLite database"):
        database_url.check_url(settings_for(f"sqlite:///{path}"))
    assert path.read_text() == "these are notes, not a database"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the names of files are text")
def test_a_directory_whose_name_is_no_text_is_one_sentence(tmp_path):
    directory = os.path.join(os.fsencode(tmp_path), b"raw\xff")
    os.mkdir(directory)
    env = dict(os.environ, XDG_STATE_HOME=str(tmp_path / "state"))
    for name in ("OTEL_EXPORTER_CMB_DATABASE_URL", "CMBAGENT_DATABASE_URL"):
        env.pop(name, None)
    said = set()
    for command in (["run", "--", sys.executable, "-c", ""], ["doctor"], ["db", "check"], ["runs"], ["parked", "list"]):
        ended = subprocess.run(
            [sys.executable, "-m", "otel_cmb.cli", *command], cwd=directory, env=env, capture_output=True, text=True,
            timeout=60, check=False)
        assert (ended.returncode, ended.stdout) == (2, "")
        said.add(ended.stderr)
    (sentence,) = said
    assert sentence.count("\n") == 1
    assert "raw\\udcff/otel_cmb.db, is no text in UTF-8" in sentence
    assert "name another file: --database-url sqlite:///" in sentence


def test_an_empty_file_is_an_empty_database(tmp_path):
    (tmp_path / "new.db").touch()
    assert database_url.check_url(settings_for(f"sqlite:///{tmp_path}/new.db")).database == f"{tmp_path}/new.db"


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/usr/bin/setpriv"), reason="needs root and setpriv")
@pytest.mark.parametrize("place", ["file", "directory"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(0o755)
    path = tmp_path / "events.db"
    if place == "file":
        sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close()
    program = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from otel_cmb import config, database_url, errors\n"
        "try: database_url.check_url(config.load(database_url=sys.argv[1]))\n"
        "except errors.DatabaseURLError as error: print(error)"
    )
    preload = "import otel_cmb.database_url, sqlite3, sqlalchemy.dialects.sqlite\n"
    command = [sys.executable, "-c", preload + program, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ("cannot be written" if place == "file" else "is not writable") in done.stdout, done.stderr


def test_a_relative_path_is_fixed_where_it_was_said(tmp_path, monkeypatch, engine_of):
    monkeypatch.chdir(tmp_path)
    engine = engine_of("sqlite:///events.db")
    monkeypatch.chdir("/")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    assert (tmp_path / "events.db").exists()


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://u@h/d", "postgresql+psycopg"), ("postgres://u@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg2://u@h/d", "postgresql+psycopg2"),
    ],
)
def test_the_driver_is_chosen(url, driver):
    assert database_url.check_url(settings_for(url)).drivername == driver


def test_without_psycopg_the_older_driver_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert database_url.check_url(settings_for("postgresql://u@h/d")).drivername == "postgresql+psycopg2"


def test_a_missing_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(DatabaseURLError, match=r"otel-cmb\[postgres\]") as caught:
        database_url.check_url(settings_for("postgresql://u:hidden-word@h/d"))
    assert "hidden-word" not in str(caught.value)
