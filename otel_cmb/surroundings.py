"""The run that the environment names, and which database has which run.

A program may write into a database of its own while `otel-cmb run` writes its spans into another one. Each of the two has
every span, in a run that it has: the program's own database is as it would be without `otel-cmb run`, and the command's has
all of it in the command's run. So a run that was made or checked in one database is named to no other.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any

from otel_cmb.environment import Variable
from otel_cmb.errors import ConfigurationError
from otel_cmb.event import Stamp
from otel_cmb.sdk import resource_of

if TYPE_CHECKING:
    from otel_cmb.pipeline import Pipeline

__all__ = ["NODE", "RUN", "SESSION", "STEP", "placed", "remember_run", "run_in", "surrounded", "text_of", "writing_pipelines"]

RUN, SESSION, NODE, STEP = (
    Variable(name) for name in ("OTEL_CMB_RUN_ID", "OTEL_CMB_SESSION_ID", "OTEL_CMB_NODE_ID", "OTEL_CMB_STEP_ID"))
_AUTO, _URL, _SCHEMA = (
    Variable(name) for name in ("OTEL_CMB_AUTO", "OTEL_EXPORTER_CMB_DATABASE_URL", "OTEL_EXPORTER_CMB_SCHEMA"))

REMEMBERED = 10_000
"""Most runs of which is known where they are."""

_homes: dict[str, str] = {}
"""The database of each run that this process has made or checked."""

_PLACES = (("cmb.node.id", "node_id"), ("cmb.step.id", "step_id"))
_NAMES = frozenset(("cmb.run.id", "cmb.session.id", *(key for key, _ in _PLACES)))

_silent: list[Any] = [None]
"""The resource that was seen last to say nothing of these: that of nearly every span."""


def text_of(value: Any) -> str | None:
    """The id an attribute's value says; `None` for an empty one, and for what is none."""
    return str(value) if isinstance(value, (str, int)) and value != "" else None


def surrounded(stamp: Stamp, resource: Any) -> Stamp:
    """Fill what nobody said from the resource (the SDK's, or `None`), then from the environment. The session of
    the resource's run, and anything of the environment's, goes with that run only."""
    if resource is not _silent[0]:
        said = resource_of(resource).attributes
        if _NAMES.isdisjoint(said):
            _silent[0] = resource
        else:
            _fill(stamp, said)
    run_id = RUN.get()
    if not run_id or stamp.run_id not in (None, run_id):
        return stamp
    stamp.run_id = run_id
    same = run_id == RUN.at_start  # what the process was started with is one whole; what a program sets is another
    stamp.session_id = stamp.session_id or (SESSION.get() if same else SESSION.now()) or None
    stamp.node_id = stamp.node_id or (NODE.get() if same else NODE.now()) or None
    stamp.step_id = stamp.step_id or (STEP.get() if same else STEP.now()) or None
    return stamp


def _fill(stamp: Stamp, said: dict[str, Any]) -> None:
    """What the resource says of what the stamp does not."""
    run_id = text_of(said.get("cmb.run.id"))
    if run_id is None or stamp.run_id in (None, run_id):
        stamp.run_id = run_id if stamp.run_id is None else stamp.run_id
        stamp.session_id = stamp.session_id or text_of(said.get("cmb.session.id"))
    for key, name in _PLACES:
        if key in said and not getattr(stamp, name):
            setattr(stamp, name, text_of(said[key]))


def remember_run(run_id: str, pipeline: Pipeline) -> None:
    """This run was made or found by way of this pipeline."""
    if (database := pipeline.database) is not None:
        if len(_homes) >= REMEMBERED:
            _homes.pop(next(iter(_homes)), None)
        _homes[run_id] = database


def run_in(run_id: str | None, pipeline: Pipeline) -> str | None:
    """The run as this pipeline's database has it: `run_id`, unless that is another database's. Then it is the
    environment's, where that is here, else the process's own (`None`)."""
    if run_id is None or _home(run_id) in (None, pipeline.database):
        return run_id
    ours = RUN.get()
    return ours if ours and _home(ours) == pipeline.database else None


def placed(stamp: Stamp, pipeline: Pipeline, resource: Any) -> Stamp:
    """What the context and the span say, filled from resource and environment, as this pipeline's database has it."""
    stamp = surrounded(stamp, resource)
    run_id = run_in(stamp.run_id, pipeline)
    if run_id != stamp.run_id:
        stamp.session_id, stamp.door_run_id = None, run_id or pipeline.automatic_run_id
    return stamp


def writing_pipelines() -> list[Pipeline]:
    """Who gets the rows of `node()` and `step()`: the pipeline installed last, and that of `otel-cmb run`."""
    from otel_cmb.pipeline import current_pipeline, known_pipelines

    current = current_pipeline()
    found = [] if current is None else [current]
    if found and _AUTO.at_start and (database := _environments_database()) not in (None, found[0].database):
        found += [pipeline for pipeline in known_pipelines() if pipeline.database == database]
    return found


def _home(run_id: str) -> str | None:
    """The database of this run, as far as this process knows."""
    if run_id == RUN.at_start and _AUTO.at_start:
        return _environments_database()
    return _homes.get(run_id)


@functools.cache
def _environments_database() -> str | None:
    """The one that `otel-cmb run` writes into."""
    from otel_cmb import config
    from otel_cmb.state_paths import state_directory

    with contextlib.suppress(ConfigurationError):
        settings = config.load(database_url=_URL.at_start, schema=_SCHEMA.at_start)
        return os.path.basename(state_directory(settings))
    return None
