"""Mounts of type ``overlay``. They are mounted on the host, since their layers are directories of the host. Pure.

Podman creates them for ``--volume DIR:/data:O`` and for volumes of images (containers/buildah pkg/overlay/overlay.go).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from hawse.errors import ConfigError
from hawse.oci.guest.bind_sources import kernel_view

KIND = "overlay"
#: Options that apply to mounts of any type; other options belong to the file system (runc
#: libcontainer/specconv/spec_linux.go).
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
#: Options of overlayfs without paths (Linux Documentation/filesystems/overlayfs.rst), and of SELinux (mount(8)).
_FLAGS_OF_OVERLAY = ("userxattr", "volatile", "default_permissions")
_VALUES = (
    "redirect_dir", "index", "uuid", "nfs_export", "xino", "metacopy", "verity",
    "context", "fscontext", "defcontext", "rootcontext",
)  # fmt: skip
_PATHS = ("lowerdir", "upperdir", "workdir")
#: One option. A backslash escapes a comma, and so do quotes around a label (fs/overlayfs/params.c, ovl_next_opt();
#: security/selinux/hooks.c, selinux_sb_eat_lsm_opts()).
_OPTION = re.compile(r'(?:fs|def|root)?context="[^"]*"|(?:\\.|[^,\\]|\\$)+', re.DOTALL)
_LAYER = re.compile(r"(?:\\.|[^:\\]|\\$)*", re.DOTALL)


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """An overlay: the absolute paths of its layers and its options.

    ``lowers`` are ordered from the top. ``upper`` is "" for a read-only overlay. ``options`` are pairs of name and
    value, with the value "" for a flag.
    """

    lowers: tuple[str, ...]
    upper: str = ""
    work: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """A key that is equal for equal overlays."""
        return f"{KIND} {msgspec.json.encode(self).decode()}"

    @property
    def name(self) -> str:
        """A description for messages."""
        return f"the overlay on {self.lowers[0][:200]}"


def read(where: str, options: Sequence[str], *, readonly: bool) -> tuple[Overlay, list[str]]:
    """Return the overlay that a mount's options define, and the other options. ``where`` names the mount in errors.

    If the mount is read-only, the upper directory becomes the first of the lower ones, so that nothing is written to
    it. Raises :class:`ConfigError`.
    """
    where = f"{where}.options"
    flags = [option for option in options if option in _FLAGS]
    values: dict[str, str] = {}
    # Engines split paths at their commas. Join the options to one text, and split it as the kernel does.
    for option in _OPTION.findall(",".join(option for option in options if option not in _FLAGS)):
        name, equals, value = option.partition("=")
        if not ((name in _PATHS or name in _VALUES) and equals and value) and not (
            name in _FLAGS_OF_OVERLAY and not equals
        ):
            raise ConfigError(
                f"{where}: {option[:80]!r} is not an overlay option that hawse supports",
                hint=f"supported: {', '.join((*_PATHS, *_FLAGS_OF_OVERLAY, *_VALUES))}",
            )
        values[name] = value  # of two equal options the kernel uses the last
    lowers = [_unescape(layer) for layer in _layers(values.pop("lowerdir", ""))]
    upper, work = (_unescape(values.pop(name, "")) for name in ("upperdir", "workdir"))
    if upper and readonly:
        lowers, upper, work = [upper, *lowers], "", ""
    _check(where, lowers, upper, work)
    pairs = tuple((name, value.strip('"')) for name, value in values.items())
    return Overlay(lowers=tuple(lowers), upper=upper, work=work if upper else "", options=pairs), flags


def _check(where: str, lowers: Sequence[str], upper: str, work: str) -> None:
    if not lowers:
        raise ConfigError(f"{where}: lowerdir: missing", hint="set it to the directories to show")
    if upper and not work:
        raise ConfigError(
            f"{where}: workdir: missing", hint="set it to an empty directory on the file system of upperdir"
        )
    if not upper and len(lowers) < 2:
        raise ConfigError(
            f"{where}: lowerdir: an overlay without an upper directory needs two directories",
            hint="set upperdir and workdir, or use a read-only bind of the directory",
        )
    names = [*(("lowerdir", lower) for lower in lowers), ("upperdir", upper), ("workdir", work)]
    for name, path in names:
        if not path and name == "lowerdir":
            raise ConfigError(
                f"{where}: lowerdir: a layer is empty or data-only", hint="list directories, separated by colons"
            )
        if path and not path.startswith("/"):
            raise ConfigError(f"{where}: {name}: {path[:200]!r} is not absolute", hint="begin it with /")
        if path and (view := kernel_view(path)):
            raise ConfigError(
                f"{where}: {name}: {path[:200]} is a file system of the host kernel, {view[:200]}",
                hint="use directories that are not below /proc, /sys or /dev",
            )


def _layers(text: str) -> list[str]:
    """Split a text at its colons, except at those after a backslash."""
    layers, place = [], 0
    while text and place <= len(text):
        match = _LAYER.match(text, place)
        assert match is not None
        layers.append(match[0])
        place = match.end() + 1
    return layers


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
