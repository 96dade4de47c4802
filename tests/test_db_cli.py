"""`otel-cmb db init | upgrade | check`, as commands."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from support import application_schema
from support.application_schema import Shape
from support.commands import installed_otel_cmb, otel_cmb

from otel_cmb import migrations
from otel_cmb.cli.db import db


def test_init_makes_the_schema_once(database_url):
    done = installed_otel_cmb("db", "init", "--database-url", database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"schema made, revision {migrations.HEAD}" in done.stdout
    done = otel_cmb("db", "init", "--database-url", database_url)
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    done = otel_cmb("db", "upgrade", "--database-url", database_url)
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


def test_init_makes_a_named_schema(postgresql_url):
    done = otel_cmb("db", "init", "--database-url", postgresql_url, "--schema", "odd name%")
    assert done.returncode == 0, done.stderr
    engine = sa.create_engine(postgresql_url)
    assert "execution_events" in sa.inspect(engine).get_table_names("odd name%")
    engine.dispose()
    done = otel_cmb("db", "check", "--database-url", postgresql_url, "--schema", "odd name%")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_an_applications_database_is_not_touched(database_url, command):
    app = application_schema.make(database_url)
    before = app.fingerprint()
    done = otel_cmb("db", command, "--database-url", database_url)
    assert done.returncode == 1
    assert "tables of an application" in done.stderr
    assert "Traceback" not in done.stderr
    assert app.fingerprint() == before
    app.engine.dispose()


def test_upgrade_of_nothing_names_init(database_url):
    done = otel_cmb("db", "upgrade", "--database-url", database_url)
    assert done.returncode == 1
    assert "otel-cmb db init" in done.stderr


def test_upgrade_brings_an_older_schema_up(database_url, monkeypatch, tmp_path):
    """One revision more than today's, from a directory of this test."""
    from otel_cmb import migrations as module

    assert CliRunner().invoke(db, ["init", "--database-url", database_url]).exit_code == 0
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "0002_later.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = '0002', '0001'\n"
        "branch_labels = depends_on = None\n"
        "def upgrade():\n    op.add_column('execution_events', sa.Column('later', sa.Text()))\n"
    )
    from alembic.config import Config

    original = Config.__init__

    def with_versions(self, *args, **kwargs):
        original(self, *args, **kwargs)
        places = f"{module.__path__[0]}/versions {versions}"
        self.set_main_option("version_locations", places)
        self.set_main_option("path_separator", "space")

    monkeypatch.setattr(Config, "__init__", with_versions)
    monkeypatch.setattr(module, "HEAD", "0002")
    monkeypatch.setattr(module, "KNOWN", ("0001", "0002"))
    checked = CliRunner().invoke(db, ["check", "--database-url", database_url])
    assert checked.exit_code == 1
    assert "otel-cmb db upgrade" in checked.output
    upgraded = CliRunner().invoke(db, ["upgrade", "--database-url", database_url])
    assert "upgraded from revision 0001 to 0002" in upgraded.output
    assert CliRunner().invoke(db, ["check", "--database-url", database_url]).exit_code == 0


def check(url, *more):
    done = otel_cmb("db", "check", "--json", "--database-url", url, *more)
    return done.returncode, json.loads(done.stdout)


def test_check_tells_owned_from_attached(database_url):
    if database_url.startswith("postgresql"):
        code, report = check(database_url)
        assert (code, report["whose"], report["fits"]) == (1, "nobody's", False)
    otel_cmb("db", "init", "--database-url", database_url)
    code, report = check(database_url)
    assert (code, report["whose"], report["revision"], report["fits"]) == (0, "otel-cmb", migrations.HEAD, True)


def test_check_says_all_about_an_applications_database(database_url):
    app = application_schema.make(database_url, Shape(
        without_columns={"execution_events": ("meta", "outputs"), "messages": ("event_id",)},
        extra_columns={"files": {"tenant": sa.String(20)}},
    ))
    before = app.fingerprint()
    code, report = check(database_url)
    assert code == 1
    assert (report["whose"], report["fits"]) == ("an application's", False)
    assert {(item["table"], item["column"]) for item in report["mismatches"]} == {
        ("execution_events", "meta"), ("execution_events", "outputs")}
    assert all(item["sql"].startswith("ALTER TABLE") for item in report["mismatches"])
    assert report["tables"]["files"]["writable"] is False
    assert any("tenant" in note for note in report["notes"])
    assert any(note.startswith("messages is left out") for note in report["notes"])
    done = otel_cmb("db", "check", "--database-url", database_url)
    assert done.returncode == 1
    assert "read only: column tenant" in done.stdout
    assert "2. " in done.stdout
    assert app.fingerprint() == before
    app.engine.dispose()


def test_check_passes_the_application_as_it_is(database_url):
    app = application_schema.make(database_url)
    done = otel_cmb("db", "check", "--database-url", database_url)
    assert done.returncode == 0
    assert done.stdout.endswith("it fits\n")
    app.engine.dispose()


def test_check_makes_no_file(tmp_path):
    done = otel_cmb("db", "check", "--database-url", f"sqlite:///{tmp_path}/none.db")
    assert done.returncode == 2
    assert "nothing has been recorded" in done.stderr
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("nonsense", 2, "cannot be read"),
        ("postgresql+psycopg://someone:hidden-word@127.0.0.1:1/db", 1, "no server answers"),
        ("sqlite:////no/such/directory/x.db", 2, "does not exist"),
    ],
)
def test_a_database_out_of_reach_is_one_line(url, code, words):
    done = otel_cmb("db", "init", "--database-url", url)
    assert done.returncode == code
    assert words in done.stderr
    assert "hidden-word" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
