"""Kernel modules: loading is begun early and waited for late, so that it overlaps with what needs none.

By finit_module(2) in the order of modules.dep: a modprobe would take longer to be loaded itself than any of them.
"""

from __future__ import annotations

import errno
import os
import threading

from hawse.agent import syscalls

_DIRECTORY = "/usr/lib/modules"


class Modules:
    """Loads each set of modules once, however many ask for it."""

    def __init__(self, directory: str = "") -> None:
        self._directory = directory or f"{_DIRECTORY}/{os.uname().release}"
        self._needs: dict[str, tuple[str, list[str]]] = {}
        self._lock = threading.Lock()
        self._begun: dict[tuple[str, ...], threading.Event] = {}
        with open(f"{self._directory}/modules.dep") as file:
            for line in file:
                path, _, others = line.partition(":")
                self._needs[_name(path)] = (path, others.split())

    def begin(self, names: tuple[str, ...]) -> threading.Event:
        """Start loading modules with their dependencies; the event is set when it is done."""
        with self._lock:
            done = self._begun.get(names)
            if done is None:
                done = self._begun[names] = threading.Event()
                threading.Thread(target=self._run, args=(names, done), daemon=True).start()
        return done

    def load(self, names: tuple[str, ...]) -> None:
        """Wait until modules are loaded. One that cannot be is missed by what needs it, with a better error."""
        self.begin(names).wait()

    def _run(self, names: tuple[str, ...], done: threading.Event) -> None:
        try:
            for name in names:
                self.insert(name)
        finally:
            done.set()

    def insert(self, name: str) -> None:
        """Load one module after what it needs; nothing where it is built in. The console tells of failures."""
        if name not in self._needs:
            return
        path, others = self._needs[name]
        for file in (*reversed(others), path):  # modules.dep lists a module's own needs after it (modules.dep(5))
            try:
                syscalls.load_module(f"{self._directory}/{file}")
            except OSError as error:
                if error.errno != errno.EEXIST:
                    print(f"hawse agent: module {file}: {os.strerror(error.errno or 0)}", flush=True)


def _name(path: str) -> str:
    """kernel/drivers/vfio/pci/vfio-pci.ko is the module vfio_pci."""
    return os.path.basename(path).partition(".")[0].replace("-", "_")
