"""Loop devices of the host on files of the test."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support.processes import all_pids, descriptors, name_of

MIB = 1024 * 1024
#: The start of the partition of a device with the option --partscan, in bytes; its size is 2 MiB.
PARTITION = 1 * MIB


@dataclass(frozen=True)
class Loop:
    """A loop device, or a partition of one, with its name; ``file`` is the backing file."""

    name: str
    file: str

    @property
    def numbers(self) -> tuple[int, int]:
        """Major and minor."""
        with open(f"/sys/class/block/{self.name}/dev") as file:
            major, minor = file.read().split(":")
        return int(major), int(minor)

    def partition(self, number: int) -> Loop:
        """One of its partitions."""
        return Loop(f"{self.name}p{number}", self.file)

    def fill(self, offset: int, data: bytes) -> None:
        """Write to the backing file, before the device is read."""
        with open(self.file, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, count: int) -> bytes:
        """The current content of the backing file."""
        with open(self.file, "rb") as file:
            file.seek(offset)
            return file.read(count)

    def holders(self) -> set[str]:
        """The programs that have the device open."""
        names = set()
        for pid in all_pids():
            for fd in descriptors(pid):
                with suppress(OSError):  # closed since
                    # Not by its path: QEMU has a node in its private /dev.
                    status = os.stat(f"/proc/{pid}/fd/{fd}")
                    if stat.S_ISBLK(status.st_mode) and status.st_rdev == os.makedev(*self.numbers):
                        names.add(name_of(pid))
        return names


@contextmanager
def loop_devices(directory: str, *options: list[str], mebibytes: int = 16) -> Iterator[list[Loop]]:
    """Create a loop device for each list of losetup's options; they are detached at the end of the context."""
    with ExitStack() as undo:
        loops = []
        for number, words in enumerate(options):
            file = f"{directory}/disk{number}"
            with open(file, "wb") as empty:
                empty.truncate(mebibytes * MIB)
            argv = ["losetup", "--find", "--show", *words, file]
            path = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
            undo.callback(subprocess.run, ["losetup", "--detach", path], check=True)
            loops.append(Loop(os.path.basename(path), file))
            if "--partscan" in words:  # created explicitly: not every kernel reads MBR partition tables
                first, count = str(PARTITION // 512), str(2 * MIB // 512)
                subprocess.run(["addpart", path, "1", first, count], check=True)
                undo.callback(subprocess.run, ["delpart", path, "1"], check=True)
        yield loops


def add_disk(spec: dict[str, Any], path: str, loop: Loop, access: str, **rights: int) -> None:
    """Add a device to a specification as an engine does: the node and its rule."""
    major, minor = loop.numbers
    node = {"path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o660} | rights
    spec["linux"].setdefault("devices", []).append(node)
    allow_disk(spec, loop, access)


def allow_disk(spec: dict[str, Any], loop: Loop, access: str) -> None:
    """A rule."""
    major, minor = loop.numbers
    rule = {"allow": True, "type": "b", "major": major, "minor": minor, "access": access}
    spec["linux"]["resources"]["devices"] += [rule] if access else []
