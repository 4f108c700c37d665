"""Notifications of a container for the host's service manager (sd_notify(3)): check, rate limit, recipient.

The guest is hostile. Only known assignments with values in the right format are passed on, one per name; all of them
describe the service itself. Assignments that name processes or descriptors of the guest's kernel (MAINPID, FDSTORE,
BARRIER), and NOTIFYACCESS, which changes permissions, are dropped.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

#: The maximum size of a message for systemd, in bytes (src/core/manager.c, NOTIFY_BUFFER_MAX).
MAX_TEXT = 4096
#: The agent sends 20 messages a second. Messages above this rate or burst are dropped.
_A_SECOND, _AT_ONCE = 40, 64
_NUMBER, _NAME = r"\d{1,20}", r"[A-Za-z0-9_.-]{1,255}"
_PASSED = {
    "READY": "1", "RELOADING": "1", "STOPPING": "1", "WATCHDOG": "1|trigger", "STATUS": ".*", "ERRNO": r"\d{1,5}",
    "EXIT_STATUS": r"\d{1,3}", "BUSERROR": _NAME, "VARLINKERROR": _NAME, "WATCHDOG_USEC": _NUMBER,
    "EXTEND_TIMEOUT_USEC": _NUMBER, "MONOTONIC_USEC": _NUMBER,
}  # fmt: skip
#: The names of the assignments that are passed on.
KEYS = frozenset(_PASSED)
_MAX_UINT64 = 2**64 - 1
_READY = "READY=1"


def checked(text: str, *, now_usec: int) -> str:
    """Filter a notification: the permitted assignments, one per line; "" if all were dropped. Pure.

    MONOTONIC_USEC, the time of a reload, becomes ``now_usec``: systemd compares it with the host's clock.
    """
    permitted: dict[str, str] = {}
    for line in text[:MAX_TEXT].split("\n"):
        key, equals, value = line.partition("=")
        if not equals or key in permitted or key not in _PASSED or not re.fullmatch(_PASSED[key], value, re.ASCII):
            continue
        if _PASSED[key] == _NUMBER and int(value) > _MAX_UINT64:
            continue
        if key == "MONOTONIC_USEC":
            value = str(now_usec)
        elif key == "STATUS":
            value = "".join(c for c in value if c.isprintable())
        permitted[key] = value
    return "\n".join(f"{key}={value}" for key, value in permitted.items())


class Notices:
    """The notifications of one container. ``clock`` returns seconds of CLOCK_MONOTONIC."""

    def __init__(self, send: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """``send`` is called with each notification, except those that :meth:`await_ready` returns."""
        self._send = send
        self._clock = clock
        self._left, self._since = float(_AT_ONCE), clock()
        self._awaited: list[asyncio.Future[str]] = []

    def handle(self, text: str) -> None:
        """Check a notification from the guest, and pass it on."""
        now = self._clock()
        self._left = min(_AT_ONCE, self._left + (now - self._since) * _A_SECOND)
        self._since = now
        if self._left < 1:
            return
        self._left -= 1
        notice = checked(text, now_usec=int(now * 1_000_000))
        if not notice:
            return
        if _READY not in notice.split("\n") or not self._answer(notice):
            self._send(notice)

    def await_ready(self) -> asyncio.Future[str]:
        """The next notification with READY=1, which is then not sent; "" if the container ends first.

        `start` reports it itself (runc start.go). If the future is cancelled, the notification is sent like any other.
        """
        self._awaited.append(asyncio.get_running_loop().create_future())
        return self._awaited[-1]

    def end(self) -> None:
        """The container has ended."""
        self._answer("")

    def _answer(self, notice: str) -> bool:
        """Resolve the pending futures. Returns False if no future is pending."""
        waiting = [future for future in self._awaited if not future.done()]
        self._awaited.clear()
        for future in waiting:
            future.set_result(notice)
        return bool(waiting)
