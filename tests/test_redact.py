"""Secrets do not pass; what is none does; content goes where it is not to be kept."""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cmb import redact, secret_patterns
from otel_cmb.capture import Capture, strip_content
from otel_cmb.event import Link, Resource, Scope, Span, SpanEvent

if sys.version_info >= (3, 11):
    from re._parser import parse  # type: ignore[import-not-found, unused-ignore]
else:
    from sre_parse import parse

A40 = "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3gH5jK7m"


def span_with(**attributes: Any) -> Span:
    return Span("1" * 32, "2" * 16, "chat", 1, 2, attributes=attributes)


SECRETS = [
    (f"use sk-{A40} now", f"sk-{A40}"),
    (f"sk-proj-{A40[:20]}_{A40[20:]}-x", A40[:20]),
    (f"key=sk_live_{A40}", f"sk_live_{A40}"),
    (f"push with ghp_{A40}", f"ghp_{A40}"),
    (f"github_pat_{A40}_{A40}", A40),
    (f"glpat-{A40[:20]}", A40[:20]),
    ("AKIAIOSFODNN7EXAMPLE is it", "AKIAIOSFODNN7EXAMPLE"),
    ("xoxb-123456789012-abcdefghijkl", "123456789012-abcdefghijkl"),
    (f"AIza{A40[:35]}", A40[:35]),
    (f"hf_{A40}", A40),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJzdWIiOiIxMjM0In0"),
    ("curl -H 'Authorization: Bearer abc.DEF-123456'", "abc.DEF-123456"),
    ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="),
    ('{"Authorization": "token abcdef123456"}', "abcdef123456"),
    ("postgresql://user:hunter2@db/x", "hunter2"),
    ("redis://:hunter2@cache", "hunter2"),
    ("postgresql://user:S3c/hunter2@db/x", "hunter2"),
    ("amqp://user:S3c/a:hunter2@db/x?y=1", "hunter2"),
    ("postgresql+psycopg://user:12/hunter2@/x?host=h", "hunter2"),
    ("postgresql://user:S3cr@hunter2@db/x", "hunter2"),
    ('password = "correct horse"', "correct horse"),
    ("password=hunter22 rest", "hunter22"),
    ("OPENAI_API_KEY=abcdef1234 python x.py", "abcdef1234"),
    (json.dumps({"api_key": "abc'd\"ef", "x": 1}), "abc'd"),
    (json.dumps({"body": json.dumps({"client_secret": "very secret"})}), "very secret"),
    (json.dumps({"password": 12345678}), "12345678"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
    ("-----BEGIN PRIVATE KEY-----\nMIIabc", "MIIabc"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secrets_are_replaced_wherever_they_are(text: str, secret: str) -> None:
    redactor = redact.Redactor()
    span = Span(
        "1" * 32, "2" * 16, text, 1, 2, status_message=text,
        attributes={"a": text, "long": "x" * 100 + " " + text, "list": [text], "deep": {"k": [{"v": text}]},
                    "bytes": b"\xff" + text.encode()},
        events=[SpanEvent("e", 1, {"exception.message": text})],
        links=[Link("1" * 32, "2" * 16, attributes={"l": text})],
        resource=Resource({"process.command_line": text}), scope=Scope("s", attributes={"x": text}),
    )
    count = redactor.span(span)
    assert secret not in repr(span)
    assert "[redacted: " in span.name
    assert count >= 11
    assert redactor.replaced == count
    assert redactor.span(span) == 0  # what was redacted is left alone
    try:
        json.loads(text)
    except ValueError:
        return
    json.loads(span.name)  # a JSON text stays one


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secrets_are_found_in_long_texts(text: str, secret: str) -> None:
    filler = "Keys and tokens are words too; a task-list, a max_tokens: 5. " * 2000
    places = (f"{filler}{text}\n{filler}", f"{text}\n{filler}", f"{filler}{text}", f"{filler}{text}\n{filler}{text}")
    for long in places:
        redactor = redact.Redactor()
        cleaned = redactor.text(long)
        assert secret not in cleaned
        assert redactor.text(cleaned) == cleaned
        if "BEGIN" not in text:
            assert len(cleaned) > len(long) - 500


@pytest.mark.parametrize("text", [
    "", "the password is asked for later", "api_key=os.environ['KEY']", "api_key = None", "password: str",
    "def f(api_key: str | None = None)", "max_tokens: 4096", '{"input_tokens": 12345}', '"api_key": null',
    "task-oriented risk-averse desk-bound", "https://host:8080/path?x=a@b", "https://example.org/@user",
    "mailto:ann@example.org", "http://localhost:3000/@user", "http://[::1]:8080/@user", "http://[::1]/a:b/c@d",
    'f"http://{host}:{port}/@{user}"', "http://$HOST:$PORT/a@b", "http://host:PORT/@user", "ssh://git@host:22/a/b@v1", "ssh://host:path/to/repo@branch", "pkg://npm:foo/bar@1.2", "s3://bucket:key/part@2",
    "postgresql://host:5432/db?user=ann@corp", "http://a:80,http://b:81/x@y",
    "https://en.example.org/wiki/A:B@C", "file://C:/Users/ann@corp", "http://a.org:80 and ann@b.org", "file:///C:/a@b",
"bearer of good news",
    "Basic research 2024",
    "0123456789abcdef0123456789abcdef", "a_very_long_snake_case_identifier_in_code", "authorization: required-for-all",
    "sk-learn-and-other-lowercase-words-here", "chatcmpl-9aBcDeFgHiJkLmNoPqRsTuVwXyZ01", "api_key=config.api_key",
])
def test_what_is_no_secret_stays(text: str) -> None:
    span = span_with(a=text, b=text + " " + "and so on, " * 10)
    attributes = dict(span.attributes)
    assert redact.Redactor().span(span) == 0
    assert span.attributes == attributes


@pytest.mark.parametrize("key", [
    "authorization", "http.request.header.authorization", "x-api-key", "api_key", "apiKey", "db.password", "set-cookie",
    "http.request.header.cookie", "client_secret", "aws.secret_access_key", "access_token",
])
def test_a_key_that_names_a_secret_gives_up_its_value(key: str) -> None:
    redactor = redact.Redactor()
    for _ in range(2):
        span = span_with(**{key: ["abc"], "nested": {key: "abc"}, "n": 0})
        assert redactor.span(span) == 2
        assert span.attributes == {key: f"[redacted: {key}]", "nested": {key: f"[redacted: {key}]"}, "n": 0}
        assert redactor.span(span) == 0


def test_ids_that_name_rows_stay() -> None:
    """A row is found by its id only, and what the context says of it is not redacted either."""
    identifiers = dict.fromkeys(redact.IDS, f"sk-{A40}")
    redactor = redact.Redactor(hook=lambda key, text: text.upper())
    span = span_with(**identifiers, **{"cmb.inputs": {"cmb.run.id": f"sk-{A40}"}, "x": f"sk-{A40}"})
    span.resource = Resource(dict(identifiers))
    assert redactor.span(span)
    assert {name: span.attributes[name] for name in redact.IDS} == span.resource.attributes == identifiers
    assert A40 not in repr([span.attributes["cmb.inputs"], span.attributes["x"]])
    span = span_with(**{"cmb.run.id": [f"sk-{A40}"]})  # no id is a list
    assert redactor.span(span)
    assert A40 not in repr(span)


def test_secrets_in_the_names_of_attributes() -> None:
    names = {f"by sk-{A40}": 1, f"by sk-{A40[::-1]}": 2, "postgresql://ann:hunter2@h": 3, "gen_ai.usage.max_output_tokens_task_": 4}
    redactor = redact.Redactor()
    for _ in range(2):
        span = span_with(**names, deep={f"sk-{A40}": f"sk-{A40}"})
        span.events.append(SpanEvent("e", 1, dict(names)))
        span.resource = Resource(dict(names))
        assert redactor.span(span) == 3 * 3 + 2
        assert span.attributes.pop("deep") == {"[redacted: API key]": "[redacted: API key]"}
        assert span.attributes == span.events[0].attributes == span.resource.attributes == {
            "by [redacted: API key]": 1, "by [redacted: API key] 2": 2, "postgresql://ann:[redacted: password]@h": 3,
            "gen_ai.usage.max_output_tokens_task_": 4}
        assert redactor.span(span) == 0
    assert redactor.minds_key(f"sk-{A40}") and not redactor.minds_key("gen_ai.usage.max_output_tokens_task_")


@pytest.mark.parametrize("key", ["gen_ai.usage.input_tokens", "key", "session.id", "token_count", "monkey", "author"])
def test_other_keys_keep_theirs(key: str) -> None:
    span = span_with(**{key: "abc"})
    assert redact.Redactor().span(span) == 0
    assert span.attributes == {key: "abc"}


def test_shared_objects_are_replaced_not_changed() -> None:
    resource = Resource({"url": "http://u:secretword@h"})
    attributes = {"url": "http://u:secretword@h"}
    redactor = redact.Redactor()
    spans = [Span("1" * 32, "2" * 16, "a", 1, 2, attributes=attributes, resource=resource) for _ in range(2)]
    assert [redactor.span(span) for span in spans] == [2, 1]
    assert resource.attributes == attributes == {"url": "http://u:secretword@h"}
    assert spans[0].resource is spans[1].resource
    assert "secretword" not in repr(spans)


def test_secrets_in_texts_that_are_no_attributes() -> None:
    secret = "password=hunter22"
    span = Span("1" * 32, "2" * 16, "a", 1, 2, trace_state=f"a={secret}")
    span.links = [Link("3" * 32, "4" * 16, f"b={secret}")]
    span.resource, span.scope = Resource({}, f"https://x?{secret}"), Scope(secret, secret, {}, secret)
    assert redact.Redactor().span(span) == 6
    assert "hunter22" not in repr(span)


def test_a_hook_that_comes_later_sees_resources_that_came_before() -> None:
    redactor, resource = redact.Redactor(), Resource({"user": "Alice"})
    spans = [Span("1" * 32, "2" * 16, "a", 1, 2, resource=resource) for _ in range(3)]
    redactor.span(spans[0])
    redact.install_hook(lambda key, text: text.replace("Alice", "[name]"))
    try:
        redactor.span(spans[1])
    finally:
        redact.install_hook(None)
    redactor.span(spans[2])
    assert [span.resource.attributes["user"] for span in spans] == ["Alice", "[name]", "Alice"]


def test_the_hook_sees_every_text_and_fails_closed() -> None:
    seen = []

    def hook(key: str, text: str) -> str:
        seen.append(key)
        if "break" in text:
            raise RuntimeError("hook")
        return re.sub("Alice", "[name]", text)

    redactor = redact.Redactor(hook=hook)
    span = span_with(a="Alice asks", b="break here", c=1)
    span.events.append(SpanEvent("said", 1, {"x": "Alice"}))
    assert redactor.span(span) == 3
    assert span.attributes == {"a": "[name] asks", "b": redact.FAILED, "c": 1}
    assert span.events[0].attributes == {"x": "[name]"}
    assert redactor.hook_failures == 1
    assert set(seen) == {"name", "a", "b", "event", "x"}
    wrong: Any = lambda key, text: None  # noqa: E731
    assert redact.Redactor(hook=wrong).text("anything") == redact.FAILED


def test_threads_count_their_own_and_nothing_is_lost() -> None:
    redactor = redact.Redactor()
    counts: list[int] = []

    def work() -> None:
        counts.extend(redactor.span(span_with(a="password=hunter22", b=f"sk-{A40}")) for _ in range(300))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(counts) == {2}
    assert redactor.replaced == 2 * 8 * 300


def test_an_installed_hook_holds_for_the_process() -> None:
    redact.install_hook(lambda key, text: text.upper())
    try:
        assert redact.Redactor().text("abc") == "ABC"
    finally:
        redact.install_hook(None)
    assert redact.Redactor().text("abc") == "abc"


def language(pattern: str) -> set[str]:
    """All texts that a regular expression without repetition matches."""
    def of(tree: Any) -> list[str]:
        made = [""]
        for kind, value in tree:
            name = str(kind)
            if name == "LITERAL":
                options = [chr(value)]
            elif name == "IN":
                options = [chr(one) for _, one in value]
            elif name == "MAX_REPEAT":
                assert value[:2] == (0, 1)
                options = ["", *of(value[2])]
            elif name == "SUBPATTERN":
                options = of(value[3])
            else:
                assert name == "BRANCH", name
                options = [text for branch in value[1] for text in of(branch)]
            made = [begun + option for begun in made for option in options]
        return made

    return set(of(parse(pattern)))


def test_every_name_of_a_secret_has_an_end_that_is_looked_for() -> None:
    names = language(secret_patterns.NAMES)
    assert len(names) > 40
    for name in names:
        assert re.fullmatch(secret_patterns.NAMES, name)
        assert name.endswith(secret_patterns.NAME_ENDS), name
        assert any(needle in name for needle in secret_patterns.NAME_NEEDLES), name
    assert {character for character in map(chr, range(128)) if re.match(r"\s", character)} <= set(secret_patterns.BETWEEN)


pieces = st.sampled_from([
    "password", "PassWd", "passphrase", "api_key", "API-KEY", "apikey", "client_secret", "secretAccessKey", "secret", "key",
    "access_token", "idtoken", "max_tokens", "Authorization", "bearer ", "BEARER\n", "Basic ", "://", "user", "@", "host", ":",
    "=", "=>", " ", "\n", "\t", "\x1c", '"', "'", "\\", '\\"', "hunter22", "abcDEF123456", "12345678", "sk-", "ghp_", "AKIA",
    "eyJ", "hf_", A40, "x" * 30, "-----BEGIN ", "PRIVATE KEY-----", "\u017fecret", "to\u212aen", "\u0130d_token", "ü", "…",
    "the galaxy of ", "[redacted: secret]", "none", "{", "}", ",", "words " * 8])


@given(st.lists(pieces, max_size=14).map("".join))
@settings(max_examples=1500, deadline=None)
def test_what_may_hold_nothing_holds_nothing(text: str) -> None:
    redactor = redact.Redactor()
    if not redactor.may_hold(text):
        assert redactor.text(text) == text
    elif redactor.text(text) != text:
        assert redactor.may_hold(f"before\n{text}\nafter")


@pytest.mark.parametrize(("text", "_"), SECRETS)
def test_every_known_secret_may_be_held(text: str, _: str) -> None:
    prose = "As said before: the redshift of the galaxy is known. " * 40
    for long in (text, prose * 40 + text, prose + text, f"{text}\n{prose}", f'{prose}{{"a":1,"b":[2]}}\n{text} {prose}', f"ü{prose}{text}"):
        assert redact.Redactor().may_hold(long)


def test_a_pattern_of_ones_own() -> None:
    own = redact.Pattern("ticket", (), re.compile(r"T-\d+"), "[redacted: ticket]")
    span = span_with(a="see T-12")
    assert redact.Redactor((*redact.DEFAULT, own)).span(span) == 1
    assert span.attributes["a"] == "see [redacted: ticket]"


@given(st.text(max_size=200) | st.from_regex(r"(password|api_key|Bearer |://u:)[\s\S]{0,60}"))
@settings(max_examples=300, deadline=None)
def test_any_text_ends_and_a_second_pass_changes_nothing(text: str) -> None:
    redactor = redact.Redactor()
    once = redactor.text(text)
    assert redactor.text(once) == once


def content_span(operation: str = "chat") -> Span:
    span = span_with(**{
        "gen_ai.operation.name": operation, "gen_ai.input.messages": "[]", "gen_ai.usage.input_tokens": 3,
        "llm.input_messages.0.message.content": "hi", "output.value": "x", "cmb.outputs": "{}",
        "gen_ai.request.model": "m",
    })
    span.events.append(SpanEvent("gen_ai.user.message", 1, {"content": "hi", "role": "user"}))
    return span


@pytest.mark.parametrize(("capture", "variable", "operation", "removed"), [
    (("all",), "", "chat", 0), (("none",), "", "chat", 5), (("llm_call",), "", "chat", 0),
    (("llm_call",), "", "execute_tool", 5), (("llm_call", "tool_call"), "", "execute_tool", 0),
    (("llm_call",), "", "unheard_of", 5), (("all",), "false", "chat", 5), (("all",), "NO_CONTENT", "chat", 5),
    (("all",), "true", "chat", 0), (("all",), "SPAN_ONLY", "chat", 1), (("all",), "EVENT_ONLY", "chat", 4),
    (("all",), "SPAN_AND_EVENT", "chat", 0), (("none",), "true", "chat", 5), (("all",), "maybe", "chat", 5),
])
def test_capture(
    capture: tuple[str, ...], variable: str, operation: str, removed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", variable)
    span = content_span(operation)
    before = len(span.attributes) + len(span.events[0].attributes)
    assert strip_content(span, capture) == removed
    assert len(span.attributes) + len(span.events[0].attributes) == before - removed
    assert span.attributes["gen_ai.usage.input_tokens"] == 3
    assert span.attributes["gen_ai.request.model"] == "m"
    assert span.events[0].attributes["role"] == "user"


def test_the_type_the_mapper_found_outranks_the_guess() -> None:
    span = content_span("chat")
    assert Capture.of(("agent_call",), {}).strip(span, "agent_call") == 0
    assert Capture.of(("agent_call",), {}).strip(span) == 5


def test_a_secret_in_a_name_is_not_in_the_marker_of_its_value() -> None:
    key = "sk-" + "abcdefghijklmnopqrstuvwxyz0123"
    span = Span("", "", "", 0, attributes={f"{key}_api_key": "v", f"{key}.password": "w"})
    redact.Redactor().span(span)
    assert key not in str(span.attributes)
    assert len(span.attributes) == 2
