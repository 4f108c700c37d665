"""A fake kernel that reacts to writes to the files of a fake sysfs. It replaces `writes.carry_out`."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from hawse.vfio import sysfs
from hawse.vfio.bind.driver_moves import Effects
from hawse.vfio.bind.sysfs_writes import Outcome, Write


class FakeKernel:
    """Changes the ``driver`` links. ``native`` is the native driver of each function; tests set the failures."""

    def __init__(self, root: str, native: dict[str, str]) -> None:
        self.root = root
        self.native = native
        self.seen: list[tuple[str, str]] = []  # path below /sys/bus/pci, and text
        self.errors: dict[tuple[str, str], int] = {}  # the errno of such a write, once; -1: it hangs
        self.picky: set[str] = set()  # drivers whose probe fails
        self.users: dict[int, list[str]] = {}  # the processes that have a group open
        self.effects = Effects(carry_out=self, load=self.load, holders=lambda group: self.users.get(group, []))
        self.modules: dict[str, str] = {}  # the modules that can be loaded, and the driver of each

    def __call__(self, writes: Sequence[Write], _seconds: float) -> Outcome:
        for done, write in enumerate(writes):
            step = (write.path.removeprefix(f"{self.root}/sys/bus/pci/"), write.text)
            self.seen.append(step)
            error = self.errors.pop(step, 0) or self.react(*step)
            if error:
                return Outcome(done, errno=max(error, 0), hangs=error < 0)
        return Outcome(len(writes))

    def react(self, path: str, text: str) -> int:
        bus, name = f"{self.root}/sys/bus/pci", text.rstrip("\n")
        if path.endswith("/driver_override"):
            if text:  # an empty write changes nothing
                with open(f"{bus}/{path}", "w") as file:
                    file.write(f"{name or '(null)'}\n")
        elif path.endswith("/unbind"):
            if sysfs.driver(name, root=self.root) != path.split("/")[1]:
                return errno.ENODEV
            os.unlink(f"{bus}/devices/{name}/driver")
        elif not sysfs.driver(name, root=self.root):
            with open(f"{bus}/devices/{name}/driver_override") as file:
                override = file.read().strip()
            driver = self.native[name] if override == "(null)" else override
            if driver not in self.picky and os.path.isdir(f"{bus}/drivers/{driver}"):
                os.symlink(f"../../drivers/{driver}", f"{bus}/devices/{name}/driver")
        return 0

    def load(self, name: str, _seconds: float) -> str:
        if name not in self.modules:
            return f"Module {name} not found"
        os.makedirs(f"{self.root}/sys/bus/pci/drivers/{self.modules[name]}")
        return ""
