"""Code that AG2 executes: by executor objects and by the older `work_dir` configuration, and the files it writes.

One event per call of an executor: the blocks it was given are one piece of work with one exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from otel_cmb import spans
from otel_cmb.instrumentation.ag2_files import Snapshot, file_type
from otel_cmb.instrumentation.ag2_patch import Act, Call, Doing, Hook
from otel_cmb.instrumentation.ag2_state import agent_name, innermost, values
from otel_cmb.instrumentation.children import PlainChildren

__all__ = ["BLOCKS", "EXECUTOR", "RUN_CODE"]

DIRECTORIES = ("_work_dir", "work_dir", "_output_dir", "_bind_dir")
"""Where executors keep the directory they work in (LocalCommandLine, Docker, Jupyter, IPython)."""


def _not_ours() -> list[str]:
    """What otel-cmb itself writes while the code runs: its database and its journals. Without a pipeline: nothing."""
    module = sys.modules.get("otel_cmb.pipeline")
    pipeline = module.current_pipeline() if module is not None else None
    if pipeline is None:
        return []
    from sqlalchemy.engine import make_url

    url, found = make_url(pipeline.settings.database_url), [pipeline.settings.state_dir]
    if url.get_backend_name() == "sqlite" and url.database:
        found.append(url.database)
    return found


class Saving:
    """Blocks that are saved and not run (HTML, CSS): files, but no execution."""

    def __init__(self, directory: str | None, own: Iterable[str] = ()):
        self._before = None if directory is None else Snapshot(directory, _not_ours())
        self._own = own
        self.output_files: Iterable[str] = ()
        """What the executor itself says that it wrote."""

    def end(self, error: BaseException | None = None) -> None:  # noqa: ARG002 - the protocol of an act
        seen = set()
        for path, size in self._before.written(self._own) if self._before is not None else ():
            seen.add(os.path.abspath(path))
            spans.file_gen(path, file_type(path), size)
        for path in self.output_files:
            if os.path.abspath(path) not in seen and os.path.isfile(path):
                spans.file_gen(path, file_type(path), os.path.getsize(path))


class Executing(Doing[spans.CodeExec, Saving]):
    """A code execution, and the files that come with it."""

    def __init__(self, block: spans.CodeExec, note: Saving):
        super().__init__(block, note)
        self._children = PlainChildren()

    def end(self, error: BaseException | None = None) -> None:
        self._children.end()
        self.note.end(error)
        super().end(error)


def _begin(
    owner: Any, code: Any, language: str, directory: str | None, *, own: Iterable[str] = (), agent: str | None = None,
) -> Act:
    block = spans.code_exec(code, language or "unknown", agent_name=agent)
    block.values.update(values("code", id(owner)))
    saving = Saving(directory, own)  # before the span: looking at the directory is not the code's time
    return Executing(block.start(), saving)


def _joined(blocks: list[tuple[str, str]]) -> tuple[str, str]:
    """The code of several blocks, and their languages in order."""
    languages = list(dict.fromkeys(language for language, _ in blocks if language))
    return "\n\n".join(code for _, code in blocks), ", ".join(languages)


# CodeExecutor.execute_code_blocks(code_blocks) -> CodeResult(exit_code, output).

def begin_executor(executor: Any, call: Call) -> Act | None:
    blocks = [(str(block.language), str(block.code)) for block in call.get(0, "code_blocks") or []]
    if not blocks or innermost()[:1] == ("code",):
        return None
    found = next((getattr(executor, name) for name in DIRECTORIES if getattr(executor, name, None) is not None), None)
    directory = os.fspath(found) if isinstance(found, (str, os.PathLike)) else None
    own = []
    if getattr(executor, "_functions", None):
        own.append(f"{getattr(executor, '_functions_module', 'functions')}.py")
    policies = getattr(executor, "execution_policies", None) or {}
    if all(policies.get(language.lower()) is False for language, _ in blocks):
        return Saving(directory, own)
    return _begin(executor, *_joined(blocks), directory, own=own)


def finish_executor(executing: Executing | Saving, result: Any) -> None:
    if isinstance(executing, Saving):
        return
    exit_code = getattr(result, "exit_code", None)
    executing.block.set_result(getattr(result, "output", None), exit_code if isinstance(exit_code, int) else None)
    executing.note.output_files = list(getattr(result, "output_files", None) or ())


EXECUTOR: Hook[Any] = Hook(begin_executor, finish_executor)


# ConversableAgent.execute_code_blocks([(language, code)]) -> (exit code, logs).

def _legacy_directory(agent: Any, work_dir: Any = None) -> str:
    config = getattr(agent, "_code_execution_config", None)
    found = work_dir or (config.get("work_dir") if isinstance(config, dict) else None)
    if found is None:
        from autogen.code_utils import WORKING_DIR

        found = WORKING_DIR
    return os.fspath(found)


def begin_blocks(agent: Any, call: Call) -> Act | None:
    blocks = [(str(language or ""), str(code)) for language, code in call.get(0, "code_blocks") or []]
    if not blocks or innermost()[:1] == ("code",):
        return None
    code, language = _joined(blocks)
    return _begin(agent, code, language or "python", _legacy_directory(agent), agent=agent_name(agent))


def finish_blocks(executing: Executing, result: Any) -> None:
    exit_code, output = result[0], result[1]
    executing.block.set_result(output.lstrip("\n") if isinstance(output, str) else output, exit_code)


BLOCKS: Hook[Any] = Hook(begin_blocks, finish_blocks)


# ConversableAgent.run_code(code, lang=..., work_dir=..., ...) -> (exit code, logs, image), when called by itself.

def begin_run_code(agent: Any, call: Call) -> Act | None:
    if innermost()[:1] == ("code",):
        return None
    directory = _legacy_directory(agent, call.kwargs.get("work_dir"))
    language = call.kwargs.get("lang") or "python"
    return _begin(agent, call.get(0, "code"), language, directory, agent=agent_name(agent))


RUN_CODE: Hook[Any] = Hook(begin_run_code, finish_blocks)
