"""What the OpenTelemetry SDK lets through is stored, also what it should not have let through."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_cmb import CMBSpanProcessor, open_reader
from otel_cmb.sdk import plain_dict


class Key(str, enum.Enum):
    """Microsoft's Agent Framework names its attributes so."""

    OPERATION = "gen_ai.operation.name"
    AGENT = "gen_ai.agent.name"
    INVOKE = "invoke_agent"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("name", ["plain", Key.INVOKE, Text("text"), None, 5])
def test_members_of_an_enum_and_odd_names_are_stored(sqlite_url: str, state_dir: object, name: Any) -> None:
    processor = CMBSpanProcessor(sqlite_url, state_dir=str(state_dir))
    provider = TracerProvider()
    provider.add_span_processor(processor)
    span = provider.get_tracer(Text("scope")).start_span(name)
    span.set_attributes({Key.OPERATION: Key.INVOKE, Key.AGENT: Text("engineer")})
    span.add_event(name, {Key.AGENT: Key.AGENT})
    span.end()
    assert provider.force_flush()
    provider.shutdown()
    with open_reader(sqlite_url) as reader:
        (event,) = reader.history(reader.resolve("latest"))
    assert (event.event_type, event.agent_name, event.status) == ("agent_call", "engineer", "completed")


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_a_span_that_loses_attributes_while_it_is_looked_at_is_copied_again(error: type[Exception]) -> None:
    class Full(OrderedDict[str, int]):
        """What older SDKs have inside once a span has its 128 attributes, changed by another thread the first time."""

        looked = 0

        def __iter__(self) -> Iterator[str]:
            self.looked += 1
            if self.looked == 1:
                raise error("changed")
            return super().__iter__()

        def keys(self) -> Any:
            return list(self)

    class Attributes(dict[str, int]):
        _dict = Full(a=1, b=2)

    assert plain_dict(Attributes(never=3)) == {"a": 1, "b": 2}
    assert Attributes._dict.looked == 2
