"""Waits for a database or a disk that is unavailable for a while, up to a stated limit."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.core.errors import StorageError
from bench.store.leftovers import partial_path

Returned = TypeVar("Returned")

WAIT_SECONDS = 1800.0
"""How long a run waits for its database or its disk before it ends."""
RETRY_SECONDS = 1.0
FIRST_SECONDS = 5.0  # of waiting for another worker before it is reported
REMIND_SECONDS = 60.0  # between two messages of one wait

NO_SPACE = {
    errno.ENOSPC: "is full: free some space",
    errno.EDQUOT: "has reached its quota: free some space, or raise the quota",
    errno.EROFS: "is mounted read-only: mount it for writing",
}
"""Errors of a disk that end when its owner does something, and what that is."""


def ignore_text(text: str) -> None:
    """Do nothing: where no wait is reported."""


def never_stop() -> None:
    """Do nothing: where no signal ends a wait."""


@dataclass
class Waiting:
    """How long an unavailable database or disk is waited for; by default not at all."""

    limit: float = 0.0
    """Seconds."""
    notify: Callable[[str], None] = ignore_text
    """Gets one sentence when a wait begins, once a minute, and when it ends."""
    check: Callable[[], None] = never_stop
    """Called several times a second during a wait; may raise."""
    check_at_work: Callable[[], None] = never_stop
    """Called at each heartbeat of a lease; may raise."""

    def retry(self, attempt: Callable[[], Returned]) -> Returned:
        """The result of `attempt`, repeated while it raises a temporary StorageError.

        Raises the last StorageError, with what was waited for how long, after `limit` seconds.
        """
        try:
            return attempt()
        except StorageError as error:
            if not error.temporary or self.limit <= 0:
                raise
            return self._wait(attempt, error)

    def _wait(self, attempt: Callable[[], Returned], error: StorageError) -> Returned:
        began, reminded = time.monotonic(), -REMIND_SECONDS
        since = time.strftime("%H:%M:%S")
        while True:
            passed = time.monotonic() - began
            cause = str(error).rstrip(".")
            if passed >= self.limit:
                raise StorageError(
                    f"{cause}. The run waited for {duration(passed)} (since {since}) and ends; what"
                    " is recorded is safe, and the same command continues."
                ) from error
            if passed - reminded >= REMIND_SECONDS:
                reminded = passed
                left = duration(self.limit - passed)
                self.notify(
                    f"process {os.getpid()} waits since {since}: {cause}. It waits {left} more;"
                    " nothing that was recorded is lost."
                )
            self._pause(min(RETRY_SECONDS, self.limit - passed))
            try:
                result = attempt()
            except StorageError as again:
                if not again.temporary:
                    raise
                error = again
            else:
                waited = duration(time.monotonic() - began)
                self.notify(f"process {os.getpid()} goes on after a wait of {waited}.")
                return result

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))


@dataclass
class Reminder:
    """Says when a message about a wait is due: after `first` seconds, then once a minute."""

    first: float = FIRST_SECONDS
    began: float = field(default_factory=time.monotonic)
    since: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))
    """The time when the wait began."""
    _last: float | None = None

    def due(self) -> bool:
        """Whether a message is due now; the next one is then due in a minute."""
        now = time.monotonic()
        next_one = self.began + self.first
        if self._last is not None:
            next_one = self._last + REMIND_SECONDS
        if now < next_one:
            return False
        self._last = now
        return True


def duration(seconds: float) -> str:
    """A duration as text.

    >>> duration(1800), duration(61), duration(9)
    ('30 min', '1 min 1 s', '9 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    parts = [f"{minutes} min"] if minutes else []
    return " ".join([*parts, f"{rest} s"] if rest or not parts else parts)


def why_not_writable(folder: Path) -> str:
    """Why nothing can be written to a folder now, if its disk is the reason; else empty."""
    probe = partial_path(folder / ".space")
    try:
        with probe.open("wb") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return NO_SPACE.get(error.errno or 0, "")
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""
