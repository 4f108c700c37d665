"""Debian packages created by the test, and a mirror of them that fake_apt.py serves."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping

Entry = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]
"""Of a package: an entry of its archive, with its content where it is a file."""

_FAKE_APT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_apt.py")


def directory(name: str) -> tarfile.TarInfo:
    """A package's entry for a directory."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry


def link(name: str, target: str, *, hard: bool = False) -> tarfile.TarInfo:
    """A package's entry for a link."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), target
    return entry


def file(name: str, content: bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    """A package's entry for a file, and its content."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    return entry, content


def make_deb(path: str, entries: Iterable[Entry]) -> str:
    """Write a package (deb(5)) with these entries in this order; returns its path."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for entry in entries:
            info, content = entry if isinstance(entry, tuple) else (entry, b"")
            archive.addfile(info, io.BytesIO(content))
    control = io.BytesIO()
    tarfile.open(fileobj=control, mode="w").close()
    with open(path, "wb") as deb:
        deb.write(b"!<arch>\n")
        for name, member in (("debian-binary", b"2.0\n"), ("control.tar", control.getvalue()),
                             ("data.tar", data.getvalue())):  # fmt: skip
            deb.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(member):<10}`\n".encode())
            deb.write(member + b"\n" * (len(member) % 2))
    return path


class Mirror:
    """A directory of packages for a fake apt-get, which it adds to the PATH of ``environment``."""

    def __init__(self, path: str, environment: Callable[[str, str], None]) -> None:
        self.path = path
        os.makedirs(f"{path}/bin")
        os.symlink(_FAKE_APT, f"{path}/bin/apt-get")
        environment("FAKE_APT", path)
        environment("PATH", f"{path}/bin:{os.environ['PATH']}")

    def offer(self, packages: Mapping[str, Iterable[str]]) -> None:
        """Set which .deb files of this directory each package needs."""
        with open(f"{self.path}/packages", "w") as file:
            json.dump({name: list(debs) for name, debs in packages.items()}, file)

    def state(self, name: str) -> None:
        """Put the mirror into the state "outdated" or "broken"."""
        with open(f"{self.path}/{name}", "w"):
            pass

    def calls(self) -> list[str]:
        """The calls of apt-get, without its options -o and -qq."""
        if not os.path.exists(f"{self.path}/calls"):
            return []
        with open(f"{self.path}/calls") as file:
            return file.read().splitlines()
