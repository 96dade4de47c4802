"""The server's log on stderr: text or JSON, fit for systemd, and never a flood."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

__all__ = ["set_up"]

# sd-daemon(3): a line may begin with its syslog priority
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
REPEAT_SECONDS = 10.0


class _Repeats(logging.Filter):
    """Lets one record per message template through in ten seconds; the next one says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.name, str(record.msg)), time.monotonic()
        since, left_out = self._last.get(key, (-REPEAT_SECONDS, 0))
        if record.levelno < logging.WARNING:
            return True
        if now - since < REPEAT_SECONDS:
            self._last[key] = (since, left_out + 1)
            return False
        if len(self._last) > 1_000:
            self._last.clear()
        self._last[key] = (now, 0)
        if left_out:
            record.msg = f"{record.msg} [{left_out} more like it]"
        return True


class _Text(logging.Formatter):
    def __init__(self) -> None:
        self._journal = "JOURNAL_STREAM" in os.environ
        super().__init__("%(levelname)s %(message)s" if self._journal else "%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if self._journal:
            prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
            return "\n".join(prefix + line for line in text.splitlines())
        return text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up(form: str, level: str) -> None:
    """Send the logs of otel-cmb and of its server libraries to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(_Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("otel_cmb").setLevel(level.upper())
    # "Invalid HTTP request received" is the client's fault and worth no line each
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
