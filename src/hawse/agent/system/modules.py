"""Load kernel modules in the background: start early and wait late, so that loading overlaps with other work.

Modules are loaded by finit_module(2) in the order of modules.dep: starting modprobe would take longer than loading any
of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from hawse.agent.system import syscalls
from hawse.errors import VmError

_DIRECTORY = "/usr/lib/hawse/modules"


class Modules:
    """Loads each set of modules once, regardless of the number of callers."""

    def __init__(self, directory: str = "", *, load: Callable[[str], None] = syscalls.load_module) -> None:
        """``load`` calls finit_module(2) for a path."""
        self._directory = directory or _DIRECTORY
        self._load_module = load
        self._dependencies: dict[str, tuple[str, list[str]]] = {}
        self._lock = threading.Lock()
        self._begun: dict[tuple[str, ...], threading.Event] = {}
        with open(f"{self._directory}/modules.dep") as file:
            for line in file:
                path, _, others = line.partition(":")
                self._dependencies[_name(path)] = (path, others.split())

    def begin(self, names: tuple[str, ...]) -> threading.Event:
        """Start loading modules with their dependencies. Returns an event that is set when they are loaded."""
        with self._lock:
            done = self._begun.get(names)
            if done is None:
                done = self._begun[names] = threading.Event()
                threading.Thread(target=self._run, args=(names, done), daemon=True).start()
        return done

    def load(self, names: tuple[str, ...]) -> None:
        """Load modules, and wait. A failure is only printed: a later step that needs the module reports it better."""
        self.begin(names).wait()

    def wait(self) -> None:
        """Wait until all loads that :meth:`begin` has started are finished."""
        with self._lock:
            begun = list(self._begun.values())
        for done in begun:
            done.wait()

    def require(self, names: tuple[str, ...]) -> None:
        """Load modules. Raises :class:`VmError` for a module that cannot be loaded."""
        for name in names:
            for file in self._files(name):
                try:
                    self._load(file)
                except OSError as error:
                    raise VmError(
                        f"vm.load_modules: the guest cannot load {name}: {file}: {error.strerror}",
                        hint="remove it from vm.load_modules",
                    ) from None

    def _run(self, names: tuple[str, ...], done: threading.Event) -> None:
        try:
            for name in names:
                self.insert(name)
        finally:
            done.set()

    def insert(self, name: str) -> None:
        """Load one module after its dependencies; do nothing if it is built in. Failures are printed to the console."""
        for file in self._files(name):
            try:
                self._load(file)
            except OSError as error:
                print(f"hawse agent: module {file}: {os.strerror(error.errno or 0)}", flush=True)

    def _files(self, name: str) -> tuple[str, ...]:
        """The files of a module's dependencies, then its own (modules.dep(5) lists dependencies after the module)."""
        path, others = self._dependencies.get(_name(name), ("", []))
        return (*reversed(others), path) if path else ()

    def _load(self, file: str) -> None:
        try:
            self._load_module(f"{self._directory}/{file}")
        except FileExistsError:
            return


def _name(path: str) -> str:
    """The module of a file: kernel/drivers/vfio/pci/vfio-pci.ko is vfio_pci."""
    return os.path.basename(path).partition(".")[0].replace("-", "_")
