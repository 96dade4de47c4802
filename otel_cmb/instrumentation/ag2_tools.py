"""The exception of a tool that fails: AG2 catches it, and answers with nothing but its message.

AG2's own lines look the function up on the agent and call it there and then. While a call is open they find one that does the
same and remembers what it raised; everybody else finds the agent's own dict, which is never changed.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.context import create_key, get_value

__all__ = ["FUNCTIONS", "RAISED_KEY", "Functions", "Raised"]

FUNCTIONS = "_function_map"
"""The agent's functions by name, AG2 0.11 to 0.14."""

LOOKING_UP = (("autogen.agentchat.conversable_agent", "execute_function"),
              ("autogen.agentchat.conversable_agent", "a_execute_function"))
"""Module and function of the lines that call what they look up."""

RAISED_KEY = create_key("otel_cmb-ag2-raised")


class Raised:
    """What a tool's function raised, until :meth:`take`: its frames hold on to what was in them."""

    def __init__(self, agent: Any, name: str):
        self._agent, self._name = agent, name
        self._error: Exception | None = None

    def is_for(self, agent: Any) -> bool:
        return self._agent is agent

    def take(self) -> Exception | None:
        """The exception, once."""
        error, self._error = self._error, None
        return error

    def watched(self, functions: Any) -> Any:
        """The agent's functions with that of this call among them in a form that remembers."""
        function = functions.get(self._name) if isinstance(functions, dict) else None
        return functions if not callable(function) else {**functions, self._name: self._watching(function)}

    def _watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
            @functools.wraps(function)
            async def waiting(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await function(*args, **kwargs)
                except Exception as error:
                    self._error = error
                    raise

            return waiting

        @functools.wraps(function)
        def calling(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                self._error = error
                raise
            return self._awaited(result) if inspect.isawaitable(result) else result

        return calling

    async def _awaited(self, result: Awaitable[Any]) -> Any:
        try:
            return await result
        except Exception as error:
            self._error = error
            raise


class Functions:
    """Stands on the class for the attribute of its objects, which stays where it is: in each object's own dict."""

    def __get__(self, agent: Any, owner: type | None = None) -> Any:
        if agent is None:
            return self
        try:
            functions = agent.__dict__[FUNCTIONS]
        except KeyError:
            raise AttributeError(f"{type(agent).__name__!r} object has no attribute {FUNCTIONS!r}") from None
        raised = get_value(RAISED_KEY)
        if not isinstance(raised, Raised) or not raised.is_for(agent):
            return functions
        caller = sys._getframe(1)
        where = caller.f_globals.get("__name__"), caller.f_code.co_name
        return raised.watched(functions) if where in LOOKING_UP else functions

    def __set__(self, agent: Any, value: Any) -> None:
        agent.__dict__[FUNCTIONS] = value

    def __delete__(self, agent: Any) -> None:
        try:
            del agent.__dict__[FUNCTIONS]
        except KeyError:
            raise AttributeError(FUNCTIONS) from None
