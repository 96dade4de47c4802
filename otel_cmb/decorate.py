"""A function, coroutine function, generator or async generator run inside a block: what the decorators are made of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from opentelemetry.context import Context, attach

from otel_cmb.context import detach

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["arguments_of", "name_of", "traced"]

MAX_YIELDED = 1_000
"""Values of one generator that are kept for its event; a stream may have no end."""

F = TypeVar("F", bound=Callable[..., Any])


class _Block(Protocol):
    def open(self) -> Context: ...
    def end(self, error: BaseException | None = None) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


K = TypeVar("K", bound=_Block)


def arguments_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, as the caller gave them, without `self` and `cls`."""
    try:
        given = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # the call itself will say what is wrong with it
        given = {**{str(index): value for index, value in enumerate(args)}, **kwargs}
    given.pop("self", None)
    given.pop("cls", None)
    return given


def name_of(function: Callable[..., Any]) -> str:
    """The function's name; of another callable, its class's."""
    return str(getattr(function, "__name__", type(function).__name__))


def traced(
    function: F, make: Callable[[tuple[Any, ...], dict[str, Any]], K], keep: Callable[[K, Any], None]
) -> F:
    """`function` inside the block that `make` gives for each call; `keep` gets the block and what was returned (of a
    generator: the list of what it yielded)."""
    def call(*args: Any, **kwargs: Any) -> Any:
        with make(args, kwargs) as block:
            result = function(*args, **kwargs)
            if not inspect.isawaitable(result):  # a value that is not there yet is none
                keep(block, result)
            return result

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        with make(args, kwargs) as block:
            result = await function(*args, **kwargs)
            keep(block, result)
            return result

    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps = _Steps(make(args, kwargs))
        inner = function(*args, **kwargs)
        step, value = inner.send, None
        try:
            while True:
                with steps:
                    item = step(value)
                steps.saw(item)
                try:
                    step, value = inner.send, (yield item)
                except GeneratorExit:
                    with steps:
                        inner.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the caller, passed on as it is
                    step, value = inner.throw, error
        except StopIteration as stop:
            keep(steps.block, steps.seen)
            steps.block.end(None)
            return stop.value
        except BaseException as error:
            steps.block.end(error)
            raise

    async def generate_async(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = _Steps(make(args, kwargs))
        inner = function(*args, **kwargs)
        step, value = inner.asend, None
        try:
            while True:
                with steps:
                    item = await step(value)
                steps.saw(item)
                try:
                    step, value = inner.asend, (yield item)
                except GeneratorExit:
                    with steps:
                        await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the caller, passed on as it is
                    step, value = inner.athrow, error
        except StopAsyncIteration:
            keep(steps.block, steps.seen)
            steps.block.end(None)
        except BaseException as error:
            steps.block.end(error)
            raise

    kinds: tuple[tuple[Callable[[Any], bool], Callable[..., Any]], ...] = (
        (inspect.isasyncgenfunction, generate_async),
        (_is_async, call_async),
        (inspect.isgeneratorfunction, generate),
    )
    wrapper = next((wrapper for is_kind, wrapper in kinds if is_kind(function)), call)
    return cast("F", functools.wraps(function)(wrapper))


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


class _Steps(Generic[K]):
    """The block of a generator: open from the first step to the last, current only while the generator's code runs."""

    def __init__(self, block: K):
        self.block = block
        self.seen: list[Any] = []
        self._inside = block.open()
        self._token: Token[Context] | None = None

    def saw(self, item: Any) -> None:
        if len(self.seen) < MAX_YIELDED:
            self.seen.append(item)

    def __enter__(self) -> None:
        self._token = attach(self._inside)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            detach(self._token)
