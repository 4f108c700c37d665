"""Debian packages by the machine's own sources, fetched and unpacked without installing any of them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hawse.errors import HostError
from hawse.vm.cache import alone

Progress = Callable[[str], None]

# Python 3.11.2, Debian 12's, has no filters yet; the paths are made safe by merged() in any case.
_FILTER: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}

_LISTS = "/var/lib/apt/lists"


@dataclass(frozen=True)
class Package:
    """A downloaded package; ``path`` is its .deb."""

    name: str
    version: str
    sha256: str
    path: str


def fetch(
    names: Sequence[str], *, cache: str, progress: Progress, options: Sequence[str] = (), lists: str = _LISTS
) -> tuple[Package, ...]:
    """The packages with all that they depend on, as if nothing were installed here, sorted by name.

    ``options``: more of apt's, "Name=value", for other sources than the machine's own. ``lists`` is the directory with
    apt's package lists, which are read from the mirror first if they are missing.
    Raises :class:`HostError` when apt cannot find or download one.
    """
    archives = os.path.join(cache, "packages")
    # apt lists only what it has not fetched yet, so the list is asked for with a directory that stays empty.
    none = os.path.join(cache, "packages-none")
    for directory in (archives, none):
        os.makedirs(f"{directory}/partial", exist_ok=True)
    status = os.path.join(cache, "no-packages")
    with open(status, "w"):
        pass
    options = [
        f"Dir::State::status={status}", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=", "Debug::NoLocking=1",
        "APT::Install-Recommends=0", "APT::Sandbox::User=root", *options,
    ]  # fmt: skip
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    with alone(os.path.join(cache, "packages.lock")):
        if not any(name.endswith("_Packages") or "_Packages." in name for name in os.listdir(lists)):
            progress("reading the package lists")
            _run([*apt, "update"])
        try:
            return _fetch(apt, names, archives, none, progress)
        except HostError:
            # Lists that are older than the mirror name versions which it has no longer.
            progress("reading the package lists again")
            _run([*apt, "update"])
            return _fetch(apt, names, archives, none, progress)


def _fetch(
    apt: Sequence[str], names: Sequence[str], archives: str, none: str, progress: Progress
) -> tuple[Package, ...]:
    wanted = parse_uris(_run([*apt, "-o", f"Dir::Cache::archives={none}", "install", "--print-uris", *names]))
    if not wanted:
        raise HostError(f"apt finds nothing to fetch for {' '.join(names)}", hint="run `apt-get update`")
    paths = {f"{archives}/{name}": size for name, size, _ in wanted}
    missing = [path for path, size in paths.items() if not os.path.exists(path) or os.path.getsize(path) != size]
    if missing:
        progress(f"downloading {len(missing)} packages")
        _run([*apt, "-o", f"Dir::Cache::archives={archives}", "install", "--download-only", "--yes", *names])
    return tuple(sorted((_package(path) for path in paths), key=lambda package: package.name))


def parse_uris(text: str) -> list[tuple[str, int, str]]:
    """File name, size in bytes and hash of each line of ``apt-get --print-uris`` (apt-get(8))."""
    lines = re.findall(r"^'[^']+' ([^ /]+\.deb) (\d+) ?(\S*)$", text, re.MULTILINE)
    return [(name, int(size), digest) for name, size, digest in lines]


def unpack(packages: Iterable[Package], into: str, *, wanted: Callable[[str], bool] = lambda _name: True) -> None:
    """Lay the packages' files out below ``into``, a merged-/usr tree; no maintainer script runs.

    ``wanted`` gets each path without a leading slash. What the packages say of owners and modes is kept.
    """
    for directory in ("bin", "sbin", "lib", "lib64"):
        os.makedirs(f"{into}/usr/{directory}", exist_ok=True)
        if not os.path.islink(f"{into}/{directory}"):
            os.symlink(f"usr/{directory}", f"{into}/{directory}")
    for package in packages:
        if not _unpack(package.path, into, wanted):
            raise HostError(f"cannot unpack {package.path}", hint="delete it and try again")


def _unpack(path: str, into: str, wanted: Callable[[str], bool]) -> bool:
    """Unpack a package; False when it is damaged: dpkg-deb fails, or its output ends too early."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    member.name = merged(member.name)
                    if member.islnk():
                        member.linkname = merged(member.linkname)
                    if member.name and not os.path.islink(f"{into}/{member.name}") and wanted(member.name):
                        archive.extract(member, into, **_FILTER)
        except tarfile.TarError:
            return False
    return process.returncode == 0


def merged(name: str) -> str:
    """A path of a package in a merged-/usr tree: bin/sh becomes usr/bin/sh."""
    path = os.path.normpath(name).lstrip("/")
    if path == "." or path.startswith(".."):
        return ""
    first, _, rest = path.partition("/")
    return f"usr/{path}" if first in ("bin", "sbin", "lib", "lib64") and rest else path


def _package(path: str) -> Package:
    name, version, _ = os.path.basename(path).split("_", 2)
    with open(path, "rb") as file:
        return Package(name, version, hashlib.file_digest(file, "sha256").hexdigest(), path)


def _run(argv: Sequence[str]) -> str:
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise HostError(f"cannot run {argv[0]}: {error.strerror}", hint="the image is built on Debian") from None
    if answer.returncode:
        raise HostError("apt cannot fetch the packages", hint="run `apt-get update`", evidence=answer.stderr[-2000:])
    return answer.stdout
