"""Kernel modules: loading is begun early and waited for late, so that it overlaps with what needs none.

By finit_module(2) in the order of modules.dep: a modprobe would take longer to be loaded itself than any of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from hawse.agent.system import syscalls
from hawse.errors import VmError

_DIRECTORY = "/usr/lib/hawse/modules"


class Modules:
    """Loads each set of modules once, however many ask for it."""

    def __init__(self, directory: str = "", *, load: Callable[[str], None] = syscalls.load_module) -> None:
        """``load``: calls finit_module(2) for a path."""
        self._directory = directory or _DIRECTORY
        self._load_module = load
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

    def wait(self) -> None:
        """Wait until all that was begun is done."""
        with self._lock:
            begun = list(self._begun.values())
        for done in begun:
            done.wait()

    def require(self, names: tuple[str, ...]) -> None:
        """Load modules. Raises :class:`VmError` for one that cannot be."""
        for name in names:
            for file in self._files(name):
                try:
                    self._load(file)
                except OSError as error:
                    raise VmError(
                        f"vm.load_modules: the guest cannot load {name}: {file}: {error.strerror}",
                        hint="take it out of vm.load_modules",
                    ) from None

    def _run(self, names: tuple[str, ...], done: threading.Event) -> None:
        try:
            for name in names:
                self.insert(name)
        finally:
            done.set()

    def insert(self, name: str) -> None:
        """Load one module after what it needs; nothing where it is built in. The console tells of failures."""
        for file in self._files(name):
            try:
                self._load(file)
            except OSError as error:
                print(f"hawse agent: module {file}: {os.strerror(error.errno or 0)}", flush=True)

    def _files(self, name: str) -> tuple[str, ...]:
        """A module's file after those of what it needs (modules.dep(5) lists a module's needs after it)."""
        path, others = self._needs.get(_name(name), ("", []))
        return (*reversed(others), path) if path else ()

    def _load(self, file: str) -> None:
        try:
            self._load_module(f"{self._directory}/{file}")
        except FileExistsError:
            return


def _name(path: str) -> str:
    """kernel/drivers/vfio/pci/vfio-pci.ko is the module vfio_pci."""
    return os.path.basename(path).partition(".")[0].replace("-", "_")
