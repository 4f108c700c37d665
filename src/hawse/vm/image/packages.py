"""Fetch Debian packages from the host's configured sources, and unpack them without installing them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from hawse.cache import trusted
from hawse.cache.results import locked
from hawse.errors import HostError
from hawse.json_text import Document
from hawse.linux import mounts

Progress = Callable[[str], None]

# Debian 12's Python 3.11.2 has no extraction filters: _check_member() and _check_inside() do not rely on them.
_FILTER: Document = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}

_LISTS = "/var/lib/apt/lists"
#: apt's default directory of packages, which the user _apt can reach.
_APT_ARCHIVES = "/var/cache/apt/archives"


@dataclass(frozen=True)
class Package:
    """A downloaded package; ``path`` is its .deb, whose SHA256 is the one in apt's signed lists."""

    name: str
    version: str
    sha256: str
    path: str


def fetch(
    names: Sequence[str], *, cache: str, progress: Progress, options: Sequence[str] = (), lists: str = _LISTS
) -> tuple[Package, ...]:
    """Download the packages with all their dependencies, as if the host had none installed; sorted by name.

    ``options``: further apt options, "Name=value", for example to use other sources than the host's. ``lists`` is the
    directory of apt's package lists; missing lists are first downloaded from the mirror.
    Raises :class:`HostError` when apt cannot find or download a package, and for a package whose content does not
    match the lists.
    """
    archives = trusted.make(cache, "packages")
    # apt prints only URIs of packages that are not in its archive directory: print them for a directory that stays
    # empty.
    empty = trusted.make(cache, "packages-none")
    for directory in (archives, empty):
        trusted.make_directories(f"{directory}/partial")
    status = os.path.join(cache, "no-packages")
    os.close(trusted.open_file(status))
    options = [
        f"Dir::State::status={status}", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=", "Debug::NoLocking=1",
        "APT::Install-Recommends=0", "Acquire::ForceHash=SHA256", *options,
    ]  # fmt: skip
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    with locked(os.path.join(cache, "packages.lock")):
        if not any(name.endswith("_Packages") or "_Packages." in name for name in os.listdir(lists)):
            progress("reading the package lists")
            _run([*apt, "update"])
        try:
            return _fetch(apt, names, archives, empty, progress)
        except HostError:
            # Outdated lists name versions that the mirror no longer has.
            progress("reading the package lists again")
            _run([*apt, "update"])
            return _fetch(apt, names, archives, empty, progress)


def _fetch(
    apt: Sequence[str], names: Sequence[str], archives: str, empty: str, progress: Progress
) -> tuple[Package, ...]:
    listed = parse_uris(_run([*apt, "-o", f"Dir::Cache::archives={empty}", "install", "--print-uris", *names]))
    if not listed:
        raise HostError(f"apt finds no package to fetch for {' '.join(names)}", hint="run `apt-get update`")
    expected = {f"{archives}/{name}": _sha256(name, digest) for name, _, digest in listed}
    missing = [path for path, digest in expected.items() if _digest(path) != digest]
    if missing:
        progress(f"downloading {len(missing)} package{'' if len(missing) == 1 else 's'}")
        for path in missing:  # otherwise apt keeps an existing file of the expected size
            with suppress(FileNotFoundError):
                os.unlink(path)
        _download(apt, names, archives)
    for path in missing:
        _verify(path, expected[path])
    packages = (_package(path, digest) for path, digest in expected.items())
    return tuple(sorted(packages, key=lambda package: package.name))


def _download(apt: Sequence[str], names: Sequence[str], archives: str) -> None:
    """Download the packages that are missing in the directory ``archives``, by means of apt.

    apt's network methods run as the user _apt, to whom apt gives the directory ``partial``. Where that user cannot
    reach the directory, apt would run the methods as root (apt apt-pkg/acquire.cc, CheckDropPrivsMustBeDisabled()). In
    this case ``archives`` is mounted on apt's default directory, in a mount namespace that ends with apt.
    """
    directory, prepare = archives, None
    if not _is_reachable(archives):
        directory, prepare = _APT_ARCHIVES, lambda: _mount_on(archives, _APT_ARCHIVES)
    arguments = ["-o", f"Dir::Cache::archives={directory}", "install", "--download-only", "--yes", *names]
    _run([*apt, *arguments], prepare=prepare)


def _is_reachable(directory: str) -> bool:
    """Whether every user can search the directory and all its parents."""
    path = os.path.realpath(directory)
    while os.stat(path).st_mode & stat.S_IXOTH:
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False


def _mount_on(source: str, target: str) -> None:
    """In a forked child: bind-mount ``source`` on ``target``, in a mount namespace that ends with this process."""
    os.makedirs(target, mode=0o755, exist_ok=True)
    mounts.unshare(mounts.PRIVATE)
    mounts.mount(source, target, "", mounts.BIND)


def _sha256(name: str, digest: str) -> str:
    kind, _, value = digest.partition(":")
    if kind != "SHA256" or not re.fullmatch("[0-9a-f]{64}", value):
        raise HostError(
            f"apt's lists have no SHA256 of the package {name}, but {digest or 'no hash'}",
            hint="use a source whose Release file lists SHA256 hashes, as Debian's does",
        )
    return value


def _digest(path: str) -> str:
    """SHA256 of a file in hexadecimal, "" if the file is missing."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _verify(path: str, expected: str) -> None:
    """Raise :class:`HostError` and remove the file if a downloaded package does not match the signed lists."""
    digest = _digest(path)
    if digest == expected:
        return
    name = os.path.basename(path)
    with suppress(FileNotFoundError):
        os.unlink(path)
    raise HostError(
        f"the package {name} is not the one in apt's lists: its SHA256 is {digest or 'missing'}, not {expected}",
        hint="run `apt-get update` and try again; if the error stays, use another mirror in apt's sources",
    )


def parse_uris(text: str) -> list[tuple[str, int, str]]:
    """File name, size in bytes and hash of each line of ``apt-get --print-uris`` (apt-get(8))."""
    lines = re.findall(r"^'[^']+' ([^ /]+\.deb) (\d+) ?(\S*)$", text, re.MULTILINE)
    return [(name, int(size), digest) for name, size, digest in lines]


def unpack(packages: Iterable[Package], into: str, *, select: Callable[[str], bool] = lambda _name: True) -> None:
    """Extract the packages' files below ``into``, a merged-/usr tree; maintainer scripts do not run.

    ``select`` is called with each path, without a leading slash, and selects files. Owners and modes of the packages
    are kept.
    """
    for directory in ("bin", "sbin", "lib", "lib64"):
        os.makedirs(f"{into}/usr/{directory}", exist_ok=True)
        if not os.path.islink(f"{into}/{directory}"):
            os.symlink(f"usr/{directory}", f"{into}/{directory}")
    for package in packages:
        if not _unpack(package.path, into, select):
            raise HostError(f"cannot unpack {package.path}", hint="delete it and try again")


def _unpack(path: str, into: str, select: Callable[[str], bool]) -> bool:
    """Unpack a package; False when it is damaged: dpkg-deb fails, or its output ends too early."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    _check_member(member, path)
                    member.name = merged(member.name)
                    if member.islnk():
                        member.linkname = merged(member.linkname)
                        _check_inside(into, member.linkname, path)
                    _check_inside(into, member.name, path)
                    if member.name and not os.path.islink(f"{into}/{member.name}") and select(member.name):
                        archive.extract(member, into, **_FILTER)
        except tarfile.TarError:
            return False
    return process.returncode == 0


def _check_member(member: tarfile.TarInfo, package: str) -> None:
    """Raise :class:`HostError` for a file name or type that Debian packages do not contain (Debian Policy 10.6: no
    device nodes)."""
    for name in (member.name, member.linkname) if member.islnk() else (member.name,):
        if name.startswith("/") or ".." in name.split("/"):
            raise _unsafe(package, name, "a path that leaves the tree")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise _unsafe(package, member.name, "a device node or a FIFO")


def _check_inside(into: str, name: str, package: str) -> None:
    """Raise :class:`HostError` if the path of a file goes through a symbolic link that leaves the tree."""
    root = os.path.realpath(into)
    parent = os.path.realpath(os.path.join(root, os.path.dirname(name)))
    if parent != root and not parent.startswith(f"{root}/"):
        raise _unsafe(package, name, "a path through a symbolic link that leaves the tree")


def _unsafe(package: str, name: str, why: str) -> HostError:
    return HostError(
        f"cannot unpack {package}: {name[:200]!r} is {why}", hint="use another mirror, and report the package"
    )


def merged(name: str) -> str:
    """A package's path in a merged-/usr tree: bin/sh becomes usr/bin/sh; "" for a path outside the tree."""
    path = os.path.normpath(name).lstrip("/")
    if path == "." or path.startswith(".."):
        return ""
    first, _, rest = path.partition("/")
    return f"usr/{path}" if first in ("bin", "sbin", "lib", "lib64") and rest else path


def _package(path: str, digest: str) -> Package:
    name, version, _ = os.path.basename(path).split("_", 2)
    return Package(name, version, digest, path)


def _run(argv: Sequence[str], *, prepare: Callable[[], None] | None = None) -> str:
    """Run apt; returns its output. ``prepare`` is called in the forked child."""
    try:
        answer = subprocess.run(
            argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, preexec_fn=prepare
        )
    except subprocess.SubprocessError:
        raise HostError(
            f"cannot mount the package directory on {_APT_ARCHIVES}, where the user _apt can reach it",
            hint="run as root with CAP_SYS_ADMIN, or let every user search image.cache and the directories above it",
        ) from None
    except OSError as error:
        raise HostError(f"cannot run {argv[0]}: {error.strerror}", hint="the image is built on Debian") from None
    if answer.returncode:
        raise HostError("apt cannot fetch the packages", hint="run `apt-get update`", evidence=answer.stderr[-2000:])
    return answer.stdout
