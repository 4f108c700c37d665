"""The kernel's device events, used only as hints to check sysfs again: sysfs is authoritative."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

_NETLINK_KOBJECT_UEVENT = 15
# Seconds between checks without an event: the socket may overflow and lose events (ENOBUFS).
_RECHECK = 0.25


class Uevents:
    """Wakes waiters at each event of the kernel."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, 1))  # group 1: events of the kernel itself (lib/kobject_uevent.c)

    def start(self) -> None:
        """Start listening in a thread."""
        threading.Thread(target=self._listen, name="uevents", daemon=True).start()

    def close(self) -> None:
        """Stop listening. Waiters then check only periodically."""
        self._socket.close()

    def wait_until(self, condition: Callable[[], bool], *, deadline: float) -> bool:
        """Check ``condition`` now and after each event. Returns True when it holds, or False at the deadline.

        ``deadline`` is a time.monotonic().
        """
        while True:
            with self._changed:
                events = self._events
            if condition():
                return True
            with self._changed:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._events == events:
                    self._changed.wait(min(left, _RECHECK))

    def _listen(self) -> None:
        while True:
            try:
                self._socket.recv(8192)
            except OSError:
                time.sleep(_RECHECK)
            with self._changed:
                self._events += 1
                self._changed.notify_all()
