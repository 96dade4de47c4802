"""A small OpenAI-compatible server whose answers are a script: chat completions and tool calls, no network, no key.

    with ScriptedServer([say("hello"), call("add", {"a": 1, "b": 2})]) as server:
        config = {"model": "scripted", "api_key": "none", "base_url": server.base_url}

Each entry of the script answers one request, in order: a dict (an assistant message), a function of the request that
gives one, or an int (an HTTP error of that status). The i-th answer reports 100 + i input and 20 + i output tokens.
Give the script as a dict from agent to list to keep one script per agent; the agent is found by a function of the
request, by default by its system message.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any] | int | Callable[[dict[str, Any]], dict[str, Any]]


def say(text: str) -> dict[str, Any]:
    """An answer that is a text."""
    return {"role": "assistant", "content": text}


def call(name: str, arguments: Mapping[str, Any] | str | None = None, call_id: str = "") -> dict[str, Any]:
    """An answer that calls one tool; `arguments` as a string are sent as they are."""
    return calls((name, arguments, call_id))


def calls(*wanted: tuple[str, Any, str]) -> dict[str, Any]:
    """An answer that calls several tools: (name, arguments, call id) each."""
    made = []
    for index, (name, arguments, call_id) in enumerate(wanted):
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        made.append({"id": call_id or f"call_{name}_{index}", "type": "function",
                     "function": {"name": name, "arguments": text}})
    return {"role": "assistant", "content": None, "tool_calls": made}


def system_message(request: dict[str, Any]) -> str:
    """The text of the request's system messages."""
    return "\n".join(str(item.get("content")) for item in request["messages"] if item.get("role") == "system")


class ScriptedServer:
    """Serves the script on a free port of the loopback address between `start` and `stop` (or in a `with` block)."""

    def __init__(self, script: Sequence[Answer] | Mapping[str, Sequence[Answer]], model: str = "gpt-4o-mini"):
        scripts = script if isinstance(script, Mapping) else {"": script}
        self._scripts = {agent: list(answers) for agent, answers in scripts.items()}
        self._model = model
        self._lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.answered = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                status, answer = server._answer(body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """The terminal belongs to the agents."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def _answer(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.requests.append(request)
            system = system_message(request)
            script = next((answers for agent, answers in self._scripts.items() if agent and agent in system),
                          self._scripts.get(""))
            if not script:
                text = f"the script has no answer left for: {system[:80]}"
                return 500, {"error": {"message": text, "code": "script"}}
            entry = script.pop(0)
            if isinstance(entry, int):
                return entry, {"error": {"message": f"scripted failure {entry}", "code": "scripted"}}
            message = entry(request) if callable(entry) else entry
            self.answered += 1
            spent = (100 + self.answered, 20 + self.answered)
            return 200, {
                "id": f"chatcmpl-{self.answered}", "object": "chat.completion", "created": 0, "model": self._model,
                "choices": [{"index": 0, "message": message,
                             "finish_reason": "tool_calls" if message.get("tool_calls") else "stop"}],
                "usage": {"prompt_tokens": spent[0], "completion_tokens": spent[1], "total_tokens": sum(spent)},
            }

    def start(self) -> ScriptedServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> "ScriptedServer":  # noqa: PYI034, UP037 - `Self` is newer than Python 3.10
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
