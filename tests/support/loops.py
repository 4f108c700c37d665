"""Loop devices of the host over files of a test's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """A loop device, and the file that it shows."""

    path: str
    file: str

    @property
    def major(self) -> int:
        return os.major(os.stat(self.path).st_rdev)

    @property
    def minor(self) -> int:
        return os.minor(os.stat(self.path).st_rdev)

    def write(self, offset: int, data: bytes) -> None:
        """Write to the file before anybody has read the device."""
        with open(self.file, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, count: int) -> bytes:
        """What the device's file has now."""
        with open(self.file, "rb") as file:
            file.seek(offset)
            return file.read(count)


@contextmanager
def loop_devices(directory: str, mebibytes: Sequence[int], *options: str) -> Iterator[list[Loop]]:
    """Loop devices of these sizes, detached at the end."""
    with ExitStack() as undo:
        made = []
        for number, size in enumerate(mebibytes):
            file = f"{directory}/disk{number}"
            with open(file, "wb") as empty:
                empty.truncate(size * 1024 * 1024)
            found = subprocess.run(
                ["losetup", "--find", "--show", *options, file], capture_output=True, text=True, check=True
            )
            path = found.stdout.strip()
            undo.callback(subprocess.run, ["losetup", "--detach", path], check=True)
            made.append(Loop(path, file))
        yield made
