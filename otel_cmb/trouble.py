"""Trouble of one pipeline: said at most once a minute, and what failed is tried again after a pause that grows."""

from __future__ import annotations

import logging
import random

from otel_cmb import clock
from otel_cmb.config import Settings, safe_url
from otel_cmb.errors import ConfigurationError, SchemaError
from otel_cmb.faults import Fault

__all__ = ["Trouble"]

_log = logging.getLogger("otel_cmb")

SAY_EVERY = 60.0
MOST_KINDS = 1000


class Trouble:
    """What is wrong at the moment, and since when it is known to whom."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Nothing is wrong yet; also what a forked child begins with."""
        self.failures = 0
        """How often in a row the database could not be written."""
        self.retry_at = 0.0
        """When it is tried again (monotonic seconds); 0: now."""
        self.last_error: BaseException | None = None
        self._said: dict[str, float] = {}

    def failed(self, fault: Fault, reason: str, error: BaseException) -> None:
        """The database cannot be written: say so."""
        self.last_error = error
        where = safe_url(self._settings.database_url)
        if fault is Fault.MISCONFIGURED:
            detail = str(error) if isinstance(error, (SchemaError, ConfigurationError)) else reason
            self.say("misconfigured", "%s cannot be written: %s; spans are kept in the journal meanwhile", where, detail)
        else:
            self.say("outage", "%s is away: %s; spans are kept in the journal and tried again", where, reason)

    def back_off(self) -> None:
        """Wait longer than the last time before the next attempt."""
        pause = min(self._settings.retry_max, 0.05 * 2 ** min(self.failures, 10))
        self.failures += 1
        self.retry_at = clock.monotonic() + pause * (0.5 + random.random() / 2)  # noqa: S311 - jitter, no secret

    def recovered(self) -> bool:
        """The database was written. True when it could not be before."""
        was_away = self.failures > 0
        if was_away:
            self.failures = 0
            self._said.pop("outage", None)
            self._said.pop("misconfigured", None)
        self.retry_at = 0.0
        return was_away

    def say(self, key: str, message: str, *values: object) -> None:
        """Log, at most once a minute for each kind of trouble."""
        if self.may_say(key):
            _log.warning("otel-cmb: " + message, *values)

    def may_say(self, key: str) -> bool:
        """Whether this kind of trouble was not said within the last minute; then it counts as said."""
        now = clock.monotonic()
        if now - self._said.get(key, -1e9) < SAY_EVERY:
            return False
        if len(self._said) > MOST_KINDS:
            self._said.clear()
        self._said[key] = now
        return True
