"""Mounts of type ``overlay``, which are made on the host: their layers are the host's directories. Pure.

Podman asks for them by ``--volume DIR:/data:O`` and for volumes of images (containers/buildah pkg/overlay/overlay.go).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from hawse.errors import ConfigError
from hawse.oci.guest.bind_sources import kernel_view

KIND = "overlay"
#: Options of mounts of any kind; what is none of these is the file system's (runc libcontainer/specconv/spec_linux.go).
_FLAGS = frozenset(
    (
        "async", "atime", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "lazytime", "loud", "mand",
        "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime", "nomand", "norelatime", "nostrictatime",
        "nosuid", "nosymfollow", "private", "ratime", "rdev", "rdiratime", "relatime", "rexec", "rnoatime", "rnodev",
        "rnodiratime", "rnoexec", "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate",
        "rrelatime", "rro", "rrw", "rslave", "rstrictatime", "rsuid", "rsymfollow", "rw", "silent", "slave",
        "strictatime", "suid", "symfollow", "sync",
    )
)  # fmt: skip
#: Those of overlayfs that name no files (Linux Documentation/filesystems/overlayfs.rst), and of SELinux (mount(8)).
_FLAGS_OF_OVERLAY = ("userxattr", "volatile", "default_permissions")
_VALUES = (
    "redirect_dir", "index", "uuid", "nfs_export", "xino", "metacopy", "verity",
    "context", "fscontext", "defcontext", "rootcontext",
)  # fmt: skip
_PATHS = ("lowerdir", "upperdir", "workdir")
#: One option: a backslash takes the comma after it along, and so do quotes around a label (fs/overlayfs/params.c,
#: ovl_next_opt(); security/selinux/hooks.c, selinux_sb_eat_lsm_opts()).
_OPTION = re.compile(r'(?:fs|def|root)?context="[^"]*"|(?:\\.|[^,\\]|\\$)+', re.DOTALL)
_LAYER = re.compile(r"(?:\\.|[^:\\]|\\$)*", re.DOTALL)


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths of its layers, the uppermost of the lower ones first; ``upper`` is "" where nothing is written.
    ``options`` are name and value, "" for a flag."""

    lowers: tuple[str, ...]
    upper: str = ""
    work: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """The same for the same overlay."""
        return f"{KIND} {msgspec.json.encode(self).decode()}"

    @property
    def name(self) -> str:
        """For messages."""
        return f"the overlay on {self.lowers[0][:200]}"


def read(where: str, options: Sequence[str], *, readonly: bool) -> tuple[Overlay, list[str]]:
    """The overlay that a mount's options ask for, and the other options. ``where`` names the mount in errors.

    One that is mounted read-only has its upper directory as the first of the lower ones: nothing is written to it.
    Raises :class:`ConfigError`.
    """
    where = f"{where}.options"
    flags = [option for option in options if option in _FLAGS]
    found: dict[str, str] = {}
    # The options are parts of one text, which the kernel takes apart: engines split a path at its commas.
    for option in _OPTION.findall(",".join(option for option in options if option not in _FLAGS)):
        name, equals, value = option.partition("=")
        if not ((name in _PATHS or name in _VALUES) and equals and value) and not (
            name in _FLAGS_OF_OVERLAY and not equals
        ):
            raise ConfigError(
                f"{where}: {option[:80]!r} is no option of an overlay that hawse knows",
                hint=f"known: {', '.join((*_PATHS, *_FLAGS_OF_OVERLAY, *_VALUES))}",
            )
        found[name] = value  # of two the kernel takes the last
    lowers = [_unescape(layer) for layer in _layers(found.pop("lowerdir", ""))]
    upper, work = (_unescape(found.pop(name, "")) for name in ("upperdir", "workdir"))
    if upper and readonly:
        lowers, upper, work = [upper, *lowers], "", ""
    _check(where, lowers, upper, work)
    values = tuple((name, value.strip('"')) for name, value in found.items())
    return Overlay(lowers=tuple(lowers), upper=upper, work=work if upper else "", options=values), flags


def _check(where: str, lowers: Sequence[str], upper: str, work: str) -> None:
    if not lowers:
        raise ConfigError(f"{where}: lowerdir: missing", hint="name the directory that is to be seen")
    if upper and not work:
        raise ConfigError(f"{where}: workdir: missing", hint="name an empty directory beside the upper one")
    if not upper and len(lowers) < 2:
        raise ConfigError(
            f"{where}: lowerdir: an overlay without an upper directory needs two directories",
            hint="name upperdir and workdir, or have a read-only bind of the directory",
        )
    names = [*(("lowerdir", lower) for lower in lowers), ("upperdir", upper), ("workdir", work)]
    for name, path in names:
        if not path and name == "lowerdir":
            raise ConfigError(f"{where}: lowerdir: a layer is empty, or of data only", hint="name directories")
        if path and not path.startswith("/"):
            raise ConfigError(f"{where}: {name}: {path[:200]!r} is not absolute", hint="begin it with /")
        if path and (view := kernel_view(path)):
            raise ConfigError(
                f"{where}: {name}: {path[:200]} is the host's view of its kernel, {view[:200]}",
                hint="name directories that are not below /proc, /sys and /dev",
            )


def _layers(text: str) -> list[str]:
    """The parts of a text between colons that no backslash precedes."""
    found, place = [], 0
    while text and place <= len(text):
        match = _LAYER.match(text, place)
        assert match is not None
        found.append(match[0])
        place = match.end() + 1
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
