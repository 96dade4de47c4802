"""Owned or attached: what `bind` makes, uses and refuses, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy as sa
from fault_support import wait_for
from support import application_schema, postgres
from support.application_schema import Shape
from support.crowd import together

from otel_cmb import binding, config, engines, faults, migrations, transactions
from otel_cmb.errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from otel_cmb.schema import APPLICATION_TABLES


@pytest.fixture
def opened():
    """Opens connections of our own engines and closes them."""
    made = []

    def open_(url, **settings):
        loaded = config.load(database_url=url, **settings)
        engine = engines.make_engine(loaded)
        made.append(engine)
        return engines.connect(engine), loaded

    connections = []
    yield lambda url, **settings: connections.append(open_(url, **settings)) or connections[-1]
    for connection, _ in connections:
        connection.close()
    for engine in made:
        engine.dispose()


@pytest.fixture
def application(database_url):
    """Makes the application's database in a shape."""
    made = []

    def make(shape=None, **options):
        made.append(application_schema.make(database_url, shape, **options))
        return made[-1]

    yield make
    for item in made:
        item.engine.dispose()


def bind(opened, url, *, create=True, read_only=False, **settings):
    connection, loaded = opened(url, **settings)
    return binding.bind(connection, loaded, create=create, read_only=read_only)


# -- owned --------------------------------------------------------------------------------------------------------


def test_an_empty_database_becomes_owned(no_leaks, database_url, opened):
    found = bind(opened, database_url)
    assert found.owned
    assert found.node_key == "pair"
    assert set(found.tables) == {table.name for table in APPLICATION_TABLES}
    assert all(table.writable for table in found.tables.values())
    again = bind(opened, database_url, create=False)
    assert again == found


def test_a_reader_makes_nothing(database_url, opened):
    with pytest.raises(SchemaError, match="otel-cmb db init"):
        bind(opened, database_url, create=False, read_only=True)
    with pytest.raises(SchemaError, match="otel-cmb db init"):
        bind(opened, database_url, read_only=True)


def test_only_owned_sqlite_files_become_wal(sqlite_url, tmp_path, opened):
    bind(opened, sqlite_url)
    connection, _ = opened(sqlite_url)
    assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    attached = application_schema.make(f"sqlite:///{tmp_path}/app.db")
    attached.engine.dispose()
    connection, loaded = opened(f"sqlite:///{tmp_path}/app.db")
    binding.bind(connection, loaded)
    assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"


FIRST_USE = """
import sys
from otel_cmb import binding, config, engines
settings = config.load(database_url=sys.argv[1])
engine = engines.make_engine(settings)
with engines.connect(engine) as connection:
    print(binding.bind(connection, settings).owned)
"""
FIRST_IMPORTS = ("otel_cmb.binding", "otel_cmb.migrations", "alembic.command", "psycopg", "sqlalchemy.dialects.postgresql")


def test_many_processes_may_come_first(database_url):
    assert together(FIRST_USE, [[database_url]] * 5, imports=FIRST_IMPORTS) == ["True\n"] * 5


def test_without_advisory_locks_many_may_come_first_too(postgresql_url, monkeypatch):
    monkeypatch.setenv(transactions.ROW_LOCK_ENV, "rows")
    assert together(FIRST_USE, [[postgresql_url]] * 4, imports=FIRST_IMPORTS) == ["True\n"] * 4


@pytest.fixture
def older(monkeypatch):
    """Makes the database one revision behind: the program is the newer one."""
    monkeypatch.setattr(migrations, "HEAD", "0002")
    monkeypatch.setattr(migrations, "KNOWN", ("0001", "0002"))


def test_an_older_postgresql_schema_is_refused_by_name_of_the_command(postgresql_url, opened, request):
    bind(opened, postgresql_url)
    request.getfixturevalue("older")
    with pytest.raises(SchemaError, match=r"revision 0001.*needs 0002.*otel-cmb db upgrade"):
        bind(opened, postgresql_url)


def test_a_newer_schema_is_refused(database_url, opened):
    bind(opened, database_url)
    connection, _ = opened(database_url)
    transactions.begin_write(connection)
    connection.exec_driver_sql("UPDATE otel_cmb_alembic_version SET version_num = '0999'")
    connection.commit()
    with pytest.raises(SchemaError, match=r"newer otel-cmb.*pip install"):
        bind(opened, database_url)


@pytest.mark.parametrize("damage", ["DROP TABLE files", "DELETE FROM otel_cmb_alembic_version"])
def test_a_half_made_schema_is_refused(database_url, opened, damage):
    bind(opened, database_url)
    connection, _ = opened(database_url)
    transactions.begin_write(connection)
    connection.exec_driver_sql(damage)
    connection.commit()
    with pytest.raises(SchemaError, match="incomplete"):
        bind(opened, database_url)


def test_a_migration_that_fails_leaves_nothing(database_url, opened, monkeypatch):
    connection, settings = opened(database_url)
    monkeypatch.setattr(migrations._version, "create", lambda *_args, **_named: 1 / 0)  # after the other tables
    with pytest.raises(ZeroDivisionError):
        binding.bind(connection, settings)
    monkeypatch.undo()
    connection, settings = opened(database_url)
    assert binding.bind(connection, settings).owned


# -- attached -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Shape(), id="today"),
        pytest.param(Shape(node_key="pair"), id="pair"),
        pytest.param(Shape(timezone=True), id="timestamptz"),
        pytest.param(Shape(json="text"), id="json-as-text"),
        pytest.param(Shape(server_defaults=True), id="server-defaults"),
        pytest.param(Shape(without_tables=("files", "messages", "workflow_steps", "dag_edges")), id="without-optional"),
        pytest.param(Shape(without_columns={"execution_events": ("agent_role", "depth")}), id="without-agent-role"),
    ],
)
def test_the_application_keeps_its_schema(no_leaks, application, opened, shape, database_url):
    app = application(shape)
    before = app.fingerprint()
    found = bind(opened, database_url)
    assert not found.owned
    assert found.node_key == shape.node_key
    assert all(table.writable for table in found.tables.values())
    assert set(shape.without_tables) & set(found.tables) == set()
    for table, columns in shape.without_columns.items():
        assert set(columns) & set(found.tables[table].columns) == set()
    if found.dialect == "postgresql":
        expected = "timestamptz" if shape.timezone else "timestamp"
        assert found.tables["execution_events"].columns["timestamp"].kind == expected
    assert found.tables["execution_events"].columns["meta"].kind == shape.json
    assert app.fingerprint() == before
    assert app.rows("alembic_version") == [{"version_num": "b8c9d0e1f2a3"}]


def test_jsonb_is_seen(postgresql_url, opened):
    app = application_schema.make(postgresql_url, Shape(json="jsonb"))
    found = bind(opened, postgresql_url)
    assert found.tables["execution_events"].columns["meta"].kind == "jsonb"
    app.engine.dispose()


def test_neutral_values_for_what_the_application_fills_by_code(application, opened, database_url):
    application()
    found = bind(opened, database_url)
    assert found.fill["files"]["is_final_output"] in (False, 0)
    runs = found.fill["workflow_runs"]
    assert (runs["is_branch"], runs["branch_depth"], runs["checkpoint_frequency_minutes"]) == (False, 0, 10)
    assert found.fill["messages"]["recipient"] == ""
    assert found.tables["messages"].columns["id"].default  # filled by the database: the store leaves it out
    assert not found.tables["files"].columns["id"].default


def test_defaults_in_the_ddl_need_no_value(application, opened, database_url):
    application(Shape(server_defaults=True))
    found = bind(opened, database_url)
    assert "is_branch" not in found.fill["workflow_runs"]
    assert "is_final_output" not in found.fill["files"]


def test_an_unknown_column_refuses_only_what_would_write_its_table(application, opened, database_url):
    application(Shape(extra_columns={"files": {"tenant": sa.String(20)}}))
    found = bind(opened, database_url)
    assert not found.tables["files"].writable
    assert "tenant" in found.tables["files"].reason
    assert found.tables["execution_events"].writable
    assert any("files cannot be written" in note for note in found.notes)
    with pytest.raises(SchemaError, match="tenant"):
        found.table("files")


def test_an_unknown_column_of_the_events_refuses_writing_not_reading(application, opened, database_url):
    application(Shape(extra_columns={"execution_events": {"tenant": sa.String(20)}}))
    with pytest.raises(SchemaError, match=r"execution_events.*tenant"):
        bind(opened, database_url)
    assert not bind(opened, database_url, read_only=True).tables["execution_events"].writable


def test_an_optional_table_that_does_not_fit_is_left_out(application, opened, database_url):
    application(Shape(without_columns={"messages": ("event_id",)}))
    found = bind(opened, database_url)
    assert "messages" not in found.tables
    assert any("messages is left out" in note and "ADD COLUMN" in note for note in found.notes)


def test_all_misfits_are_told_at_once(postgresql_url, opened):
    app = application_schema.make(postgresql_url, Shape(
        without_columns={"execution_events": ("meta", "outputs"), "workflow_runs": ("started_at",)}, id_length=32,
    ))
    with app.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE execution_events ALTER COLUMN execution_order TYPE TEXT"))
    before = app.fingerprint()
    with pytest.raises(binding.SchemaMismatchError) as caught:
        bind(opened, postgresql_url)
    places = {(item.table, item.column) for item in caught.value.mismatches}
    assert places == {
        ("execution_events", "meta"), ("execution_events", "outputs"), ("workflow_runs", "started_at"),
        ("execution_events", "id"), ("execution_events", "parent_event_id"), ("execution_events", "execution_order"),
    }
    message = str(caught.value)
    assert "execution_events.id: found text(32), needed text of at least 36 characters" in message
    assert app.fingerprint() == before
    with app.engine.begin() as connection:
        for item in caught.value.mismatches:
            connection.execute(sa.text(item.sql.replace(":", r"\:")))
    assert not bind(opened, postgresql_url).owned
    app.engine.dispose()


def test_a_column_nobody_fills_is_among_all_misfits(application, opened, database_url):
    app = application(Shape(
        extra_columns={"execution_events": {"tenant": sa.Integer(), "zone": sa.Integer()}, "workflow_runs": {"owner": sa.Integer()}},
        without_columns={"workflow_runs": ("started_at",), "execution_events": ("outputs",)}))
    with pytest.raises(binding.SchemaMismatchError) as caught:
        bind(opened, database_url)
    found = {(item.table, item.column): item for item in caught.value.mismatches}
    assert found.keys() == {("execution_events", "tenant"), ("execution_events", "zone"), ("execution_events", "outputs"),
                            ("workflow_runs", "started_at")}
    assert all(f"{table}.{column}: found" in str(caught.value) for table, column in found)
    connection, settings = opened(database_url)
    notes = binding.examine(connection, settings).notes
    connection.rollback()
    assert [note for note in notes if note.startswith("workflow_runs cannot be written") and "owner" in note]
    hint = found["execution_events", "tenant"].sql
    if database_url.startswith("sqlite"):  # no ALTER COLUMN there
        assert "ALTER" not in hint
        assert "copied" in hint
        assert not any("ALTER COLUMN" in note for note in notes)
        return
    with app.engine.begin() as changing:
        for item in found.values():
            changing.execute(sa.text(item.sql))
    assert bind(opened, database_url).tables["execution_events"].writable


UNIQUE_NUMBERS = {
    "of a run": ("CREATE UNIQUE INDEX once ON execution_events (run_id, execution_order)", True),
    "of a node": ("CREATE UNIQUE INDEX once ON execution_events (node_id, execution_order)", True),
    "of all": ("CREATE UNIQUE INDEX once ON execution_events (execution_order)", False),
    "of a session": ("CREATE UNIQUE INDEX once ON execution_events (session_id, execution_order)", False),
}


@pytest.mark.parametrize("reach", UNIQUE_NUMBERS)
def test_numbers_that_are_unique_beyond_a_run_are_a_misfit(application, opened, database_url, reach):
    app = application()
    sql, fits = UNIQUE_NUMBERS[reach]
    with app.engine.begin() as connection:
        connection.exec_driver_sql(sql)
    if not fits:
        with pytest.raises(binding.SchemaMismatchError) as caught:
            bind(opened, database_url)
        [item] = caught.value.mismatches
        assert "execution_events.execution_order: found unique by (" in str(item)
        with app.engine.begin() as connection:
            connection.exec_driver_sql(item.sql)
    assert bool(bind(opened, database_url).tables["execution_events"].numbers) == fits


def test_indexes_on_expressions_are_taken_without_a_warning(application, opened, database_url, recwarn):
    app = application()
    with app.engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX lower_name ON execution_events (lower(agent_name))")
        connection.exec_driver_sql("CREATE UNIQUE INDEX once ON execution_events (lower(agent_name), execution_order)")
    with pytest.raises(binding.SchemaMismatchError) as caught:
        bind(opened, database_url)
    [item] = caught.value.mismatches
    assert "unique by (an expression, execution_order)" in str(item)
    assert not [str(one.message) for one in recwarn if issubclass(one.category, sa.exc.SAWarning)]


def test_a_unique_constraint_is_seen_like_an_index(opened, database_url):
    metadata = application_schema.tables(Shape())
    metadata.tables["execution_events"].append_constraint(sa.UniqueConstraint("session_id", "execution_order", name="once"))
    engine = sa.create_engine(database_url)
    metadata.create_all(engine)
    with pytest.raises(binding.SchemaMismatchError) as caught:
        bind(opened, database_url)
    [item] = caught.value.mismatches
    if engine.dialect.name == "sqlite":
        assert "copied" in item.sql
    else:
        with engine.begin() as connection:
            connection.exec_driver_sql(item.sql)
        assert bind(opened, database_url).tables["execution_events"].writable
    engine.dispose()


def test_missing_tables_and_keys_are_misfits(postgresql_url, opened):
    app = application_schema.make(postgresql_url)
    with app.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE execution_events DROP CONSTRAINT execution_events_pkey CASCADE"))
        connection.execute(sa.text("DROP TABLE dag_nodes CASCADE"))
    with pytest.raises(binding.SchemaMismatchError) as caught:
        bind(opened, postgresql_url)
    assert {(item.table, item.found) for item in caught.value.mismatches} == {
        ("dag_nodes", "no such table"), ("execution_events", "no primary key"),
    }
    app.engine.dispose()


def test_tables_of_an_application_without_events_are_not_touched(application, opened, database_url):
    app = application(Shape(without_tables=("execution_events", "files", "messages")))
    before = app.fingerprint()
    with pytest.raises(SchemaError, match=r"tables of another program.*workflow_runs"):
        bind(opened, database_url)
    assert app.fingerprint() == before


def test_unrelated_tables_are_no_hindrance(database_url, opened):
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE recipes (id INTEGER)"))
    assert bind(opened, database_url).owned
    engine.dispose()


# -- PostgreSQL ---------------------------------------------------------------------------------------------------


def test_the_setting_names_another_schema(postgresql_url, opened):
    app = application_schema.make(postgresql_url, Shape(schema="Agents"))
    found = bind(opened, postgresql_url, schema="Agents")
    assert not found.owned
    assert found.tables["execution_events"].qualified == '"Agents"."execution_events"'
    app.engine.dispose()


def test_without_the_setting_the_search_path_decides(postgresql_url, opened):
    app = application_schema.make(postgresql_url, Shape(schema="agents"))
    database = sa.make_url(postgresql_url).database
    with app.engine.begin() as connection:
        connection.execute(sa.text(f'ALTER DATABASE "{database}" SET search_path TO public, agents'))
    assert bind(opened, postgresql_url).schema == "agents"
    app.engine.dispose()


def test_a_schema_that_does_not_exist_is_an_error(postgresql_url, opened):
    with pytest.raises(SchemaError, match=r"'nowhere' does not exist.*db init --schema nowhere"):
        bind(opened, postgresql_url, schema="nowhere")


def test_an_owned_schema_beside_the_applications(postgresql_url, opened):
    app = application_schema.make(postgresql_url)
    before = app.fingerprint()
    connection, settings = opened(postgresql_url, schema="traces")
    migrations.make_schema(connection.engine, "traces")
    assert binding.bind(connection, settings).owned
    assert {name: value for name, value in app.fingerprint().items() if name.startswith("public.")} == before
    app.engine.dispose()


@pytest.fixture
def role(postgresql_server, postgresql_url):
    """A user without any rights, and the database's URL for it."""
    name = f"guest_{os.getpid()}"
    database = sa.make_url(postgresql_url).database
    postgresql_server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden-word'")
    url = sa.make_url(postgresql_url).set(username=name, password="hidden-word")
    yield name, postgres.text(url)
    postgresql_server.execute(f"DROP OWNED BY {name}", database=database)
    postgresql_server.execute(f"DROP ROLE {name}")


def test_missing_rights_are_told_with_the_grant_that_gives_them(postgresql_url, role, opened):
    name, url = role
    app = application_schema.make(postgresql_url)
    with app.engine.begin() as connection:
        connection.execute(sa.text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"))
    with pytest.raises(SchemaError) as caught:
        bind(opened, url)
    assert f'GRANT INSERT, UPDATE ON "public"."execution_events" TO "{name}"' in str(caught.value)
    assert "hidden-word" not in str(caught.value)
    assert not bind(opened, url, read_only=True).owned
    with app.engine.begin() as connection:
        connection.execute(sa.text(f"GRANT INSERT, UPDATE ON execution_events TO {name}"))
    found = bind(opened, url)
    assert found.tables["execution_events"].writable
    assert not found.tables["workflow_runs"].writable
    app.engine.dispose()


def test_no_right_to_make_tables_is_one_clear_error(role, opened):
    with pytest.raises(sa.exc.DBAPIError) as caught:
        bind(opened, role[1])
    fault, reason = faults.classify(caught.value)
    assert fault is faults.Fault.MISCONFIGURED
    assert "rights are missing" in reason


def test_row_level_security_is_noted(postgresql_url, role, opened):
    name, url = role
    app = application_schema.make(postgresql_url)
    session = app.add_session()
    mine, other = app.add_run(session, agent="mine"), app.add_run(session, agent="other")
    with app.engine.begin() as connection:
        for statement in (
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {name}",
            "ALTER TABLE workflow_runs ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY mine ON workflow_runs TO {name} USING (agent = 'mine')",
        ):
            connection.execute(sa.text(statement))
    found = bind(opened, url)
    assert any("row-level security" in note for note in found.notes)
    connection, _ = opened(url)
    seen = [row[0] for row in connection.exec_driver_sql("SELECT id FROM workflow_runs")]
    assert seen == [mine]
    assert other not in seen
    app.engine.dispose()


def test_too_old_a_server_is_refused(postgresql_url, opened, monkeypatch):
    monkeypatch.setattr(binding, "OLDEST_POSTGRESQL", 99)
    with pytest.raises(SchemaError, match=r"PostgreSQL \d+.*needs PostgreSQL 99"):
        bind(opened, postgresql_url)


def test_another_engine_behind_the_protocol_is_not_judged_by_its_number(postgresql_url, opened):
    connection, _ = opened(postgresql_url)
    transactions.begin_write(connection)
    for statement in (
        "CREATE SCHEMA pretend",
        """CREATE FUNCTION pretend.version() RETURNS text LANGUAGE sql AS
           $$SELECT 'PostgreSQL 11.2-YB-2.25.1.0-b0 on x86_64-pc-linux-gnu'$$""",
        f'ALTER DATABASE "{sa.make_url(postgresql_url).database}" SET search_path TO pretend, pg_catalog, public',
    ):
        connection.exec_driver_sql(statement)
    connection.commit()
    assert bind(opened, postgresql_url, schema="public").owned


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"database": "no_such_database"}, ConfigurationError, "database does not exist"),
        ({"username": "nobody_here"}, ConfigurationError, "does not know the user"),
        ({"host": "no-such-host.invalid", "query": {}}, DatabaseUnavailableError, "host name"),
        ({"host": "127.0.0.1", "port": 1, "query": {}}, DatabaseUnavailableError, "no server answers"),
        ({"query": {"host": "/no/such/directory"}}, DatabaseUnavailableError, "no server listens"),
    ],
)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_connecting_in_vain_gives_one_clear_error(postgresql_server, opened, change, kind, words, driver):
    if "username" in change and postgresql_server.socket_path is None:
        pytest.skip("a server with passwords answers otherwise")
    password = (postgresql_server.url.password if "database" in change else None) or "hidden-word"
    url = postgres.text(postgresql_server.url.set(password=password).set(**change), driver)
    with pytest.raises(kind, match=words) as caught:
        opened(url)
    assert password not in str(caught.value)


def test_a_wrong_password_is_told_as_such(private_postgresql, opened):
    server = private_postgresql
    server.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    rules = Path(server.execute("SHOW hba_file")[0][0])
    rules.write_text(f"local all guarded scram-sha-256\n{rules.read_text()}")
    [before] = server.execute("SELECT pg_conf_load_time()")
    server.execute("SELECT pg_reload_conf()")
    wait_for(lambda: server.execute("SELECT pg_conf_load_time()") != [before])
    for driver in ("psycopg", "psycopg2"):
        with pytest.raises(ConfigurationError, match="refused the password") as caught:
            opened(postgres.text(server.url.set(username="guarded", password="hidden-word"), driver))
        assert "hidden-word" not in str(caught.value)


def test_reflection_needs_no_import_of_alembic(sqlite_url, opened):
    bind(opened, sqlite_url)
    program = textwrap.dedent("""
        import sys
        from otel_cmb import binding, config, engines
        settings = config.load(database_url=sys.argv[1])
        with engines.connect(engines.make_engine(settings)) as connection:
            binding.bind(connection, settings)
        print("alembic" in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", program, sqlite_url], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
