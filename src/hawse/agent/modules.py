"""Kernel modules: loading is begun early and waited for late, so that it overlaps with what needs none."""

from __future__ import annotations

import threading

from hawse.agent.reaper import Reaper


class Modules:
    """Loads each set of modules once, however many ask for it."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, ...], threading.Event] = {}

    def begin(self, names: tuple[str, ...]) -> threading.Event:
        """Start loading modules with their dependencies; the event is set when it is done."""
        with self._lock:
            done = self._loaded.get(names)
            if done is None:
                done = self._loaded[names] = threading.Event()
                threading.Thread(target=self._run, args=(names, done), daemon=True).start()
        return done

    def load(self, names: tuple[str, ...]) -> None:
        """Wait until modules are loaded. One that cannot be is missed by what needs it, with a better error."""
        self.begin(names).wait()

    def _run(self, names: tuple[str, ...], done: threading.Event) -> None:
        pid = self._reaper.spawn(["/sbin/modprobe", "-a", "-q", *names], environment={"PATH": "/sbin:/bin"})
        self._reaper.wait(pid)
        done.set()
