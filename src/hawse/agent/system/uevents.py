"""The kernel's device events, used as hints only: whoever waits looks at sysfs, which is the truth."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

_NETLINK_KOBJECT_UEVENT = 15
# The socket may overflow and lose events (ENOBUFS): then the next look comes this much later, in seconds.
_RECHECK = 0.25


class Uevents:
    """Wakes waiters whenever the kernel announces something."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, 1))  # group 1: the kernel's own multicast (lib/kobject_uevent.c)

    def start(self) -> None:
        """Begin to listen."""
        threading.Thread(target=self._listen, name="uevents", daemon=True).start()

    def close(self) -> None:
        """Stop hearing; waiters still look from time to time."""
        self._socket.close()

    def wait_until(self, look: Callable[[], bool], *, deadline: float) -> bool:
        """Call ``look`` at once and after every hint; True as soon as it is, False at the time.monotonic() deadline."""
        while True:
            with self._changed:
                seen = self._seen
            if look():
                return True
            with self._changed:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._seen == seen:
                    self._changed.wait(min(left, _RECHECK))

    def _listen(self) -> None:
        while True:
            try:
                self._socket.recv(8192)
            except OSError:
                time.sleep(_RECHECK)
            with self._changed:
                self._seen += 1
                self._changed.notify_all()
