"""Wrapping methods of classes so that the program cannot tell: once, as they are overridden, and back again.

A wrapped method calls the original exactly once with what it was given, returns what it returned and lets its
exceptions through. What goes wrong on our side is logged at most once a minute and changes nothing (under the variable
`OTEL_CMB_TESTING=1` it is raised, so that tests see it).
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import wrapt

from otel_cmb import clock

__all__ = ["Act", "Call", "Doing", "Hook", "Patcher", "handle_internal_errors"]

logger = logging.getLogger("otel_cmb.instrumentation")

_QUIET_SECONDS = 60.0
_ABSENT = object()
_last_report: list[float] = []


class handle_internal_errors:  # noqa: N801 - reads as a statement
    """Our own errors end here: the program goes on, with less telemetry."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception) or os.environ.get("OTEL_CMB_TESTING") == "1":
            return False
        now = clock.monotonic()
        if not _last_report or now - _last_report[0] >= _QUIET_SECONDS:
            _last_report[:] = [now]
            logger.error("otel-cmb could not record a span; the program is not affected. Please report this.",
                         exc_info=error)
        return True


class Act(Protocol):
    """Something that goes on while the original runs."""

    def end(self, error: BaseException | None = None) -> None: ...


B = TypeVar("B", bound=Act)
N = TypeVar("N")


class Doing(Generic[B, N]):
    """A span that is open while the original runs, with a note for its end."""

    def __init__(self, block: B, note: N):
        self.block, self.note = block, note

    def end(self, error: BaseException | None = None) -> None:
        self.block.end(error)


class Call:
    """The arguments of a call, by position or name (overriding methods and callers mix both), and what is called."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        self.function, self.args, self.kwargs = function, args, kwargs

    def get(self, position: int, name: str, default: Any = None) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default


A = TypeVar("A", bound=Act)


@dataclass(frozen=True)
class Hook(Generic[A]):
    """What to do around a method. `begin` gets the object and the call, and returns the act that it opened, or `None`
    for nothing; `finish` gets that act and what the original returned. The act ends after it, or with the exception."""

    begin: Callable[[Any, Call], A | None]
    finish: Callable[[A, Any], None] | None = None


Hooks = Mapping[str, Hook[Any]]


class _OfObject(wrapt.FunctionWrapper):  # type: ignore[misc]
    """Stands for a function on one object, in every respect but the call. A copy or a pickle is the function itself."""

    def __copy__(self) -> Any:
        return self.__wrapped__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self.__wrapped__,)


def _itself(value: Any) -> Any:
    return value


class Patcher:
    """The patches of one instrumentation."""

    def __init__(self) -> None:
        self.active = False
        self._lock = threading.RLock()
        self._trees: list[tuple[type, Hooks]] = []
        self._patched: list[tuple[Any, str, Any, Any]] = []
        self._seen: weakref.WeakSet[type] = weakref.WeakSet()
        self._ours: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
        self._objects: list[tuple[weakref.ref[Any], str, _OfObject]] = []

    @property
    def patched(self) -> bool:
        return bool(self._patched)

    def watch(self, root: type, hooks: Hooks) -> None:
        """Wrap these methods of `root` and of every class below it that overrides them."""
        with self._lock:
            self._trees.append((root, hooks))
            self._seen = weakref.WeakSet()
        self.refresh(root)

    def refresh(self, root: type) -> None:
        """Cover the classes below `root` that were made since."""
        for found in _below(root):
            self.ensure(found)

    def ensure(self, found: type, like: type | None = None) -> None:
        """Cover this class and its bases, where they stand below a watched root, or behave as one below `like`."""
        if found in self._seen:
            return
        with self._lock:
            self._seen.add(found)
            for root, hooks in self._trees:
                for base in found.__mro__ if root in found.__mro__ or root is like else ():
                    if root in base.__mro__ or root is like:
                        self._wrap_own(base, hooks)

    def wrap(self, owner: type, name: str, hook: Hook[Any]) -> None:
        """Wrap one method of one class."""
        with self._lock:
            self._wrap_own(owner, {name: hook})

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, to be put back by :meth:`restore`, or taken away where there was none."""
        with self._lock:
            self._patched.append((owner, name, vars(owner).get(name, _ABSENT), value))
            setattr(owner, name, value)

    def wrap_of_object(self, owner: Any, name: str, hook: Hook[Any]) -> None:
        """Wrap what a program has put on one object in the place of a method: it is called without the object."""
        given = getattr(owner, "__dict__", {}).get(name)
        if not callable(given) or isinstance(given, _OfObject):
            return
        reference = weakref.ref(owner)  # an object and what is put on it must not keep each other alive
        if inspect.iscoroutinefunction(given):
            async def waiting(_owner: Any, /, *args: Any, **kwargs: Any) -> Any:
                return await given(*args, **kwargs)

            method = self._wrapper(waiting, hook)
        else:
            def calling(_owner: Any, /, *args: Any, **kwargs: Any) -> Any:
                return given(*args, **kwargs)

            method = self._wrapper(calling, hook)

        def wrapper(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            found = reference()
            return wrapped(*args, **kwargs) if found is None else method(found, *args, **kwargs)

        ours = _OfObject(given, wrapper)
        with self._lock:
            self._objects = [entry for entry in self._objects if entry[0]() is not None]
            self._objects.append((reference, name, ours))
            setattr(owner, name, ours)

    def restore(self) -> None:
        """Everything as it was. What somebody else has put on top of ours stays, and passes through."""
        with self._lock:
            self.active = False
            for reference, name, ours in self._objects:
                if (found := reference()) is not None and vars(found).get(name) is ours:
                    setattr(found, name, ours.__wrapped__)
            self._objects.clear()
            for owner, name, original, ours in reversed(self._patched):
                if vars(owner).get(name) is not ours:
                    continue
                if original is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)
            self._patched.clear()
            self._trees.clear()
            self._seen = weakref.WeakSet()

    def _wrap_own(self, owner: type, hooks: Hooks) -> None:
        for name, hook in hooks.items():
            original = vars(owner).get(name)
            if inspect.isfunction(original) and original not in self._ours:
                self.replace(owner, name, self._wrapper(original, hook))

    def _wrapper(self, original: Callable[..., Any], hook: Hook[Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(original):
            @functools.wraps(original)
            async def wrapper(self_: Any, /, *args: Any, **kwargs: Any) -> Any:
                act = self._begin(hook, self_, Call(original, args, kwargs))
                if act is None:
                    return await original(self_, *args, **kwargs)
                try:
                    result = await original(self_, *args, **kwargs)
                except BaseException as error:
                    _abort(act, error)
                    raise
                _complete(hook, act, result)
                return result
        else:
            @functools.wraps(original)
            def wrapper(self_: Any, /, *args: Any, **kwargs: Any) -> Any:
                act = self._begin(hook, self_, Call(original, args, kwargs))
                if act is None:
                    return original(self_, *args, **kwargs)
                try:
                    result = original(self_, *args, **kwargs)
                except BaseException as error:
                    _abort(act, error)
                    raise
                _complete(hook, act, result)
                return result

        self._ours.add(wrapper)
        return wrapper

    def _begin(self, hook: Hook[Any], owner: Any, call: Call) -> Act | None:
        act: Act | None = None
        if self.active:
            with handle_internal_errors():
                act = hook.begin(owner, call)
        return act


def _complete(hook: Hook[Any], act: Act, result: Any) -> None:
    with handle_internal_errors():
        # An override that is no coroutine function may hand out a coroutine: its value is not there yet.
        if hook.finish is not None and not inspect.isawaitable(result):
            hook.finish(act, result)
    with handle_internal_errors():
        act.end()


def _abort(act: Act, error: BaseException) -> None:
    with handle_internal_errors():
        act.end(error)


def _below(root: type) -> Iterable[type]:
    found: dict[type, None] = {root: None}
    queue: list[type] = [root]
    while queue:
        children: list[type] = type.__subclasses__(queue.pop())
        for child in children:
            if child not in found:
                found[child] = None
                queue.append(child)
    return list(found)
