"""Adapt mount options that crun 1.8.1 treats differently from runc.

- If two options contradict each other, runc applies the last one. With "ro" and "rw", crun mounts read-only.
- crun opens the target of a mount with recursive options as a directory (src/libcrun/linux.c, open_mount_target()),
  which fails for a file. Nothing can be mounted below a file, so there the options mean the same without their first
  letter.
"""

from __future__ import annotations

import os

from hawse.oci.document import is_bind

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hawse.json_text import Document

#: The recursive options, for mount_setattr(2) (runc's libcontainer/specconv/spec_linux.go, initMaps()).
OPTIONS = frozenset(
    f"r{name}"
    for name in (
        "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "diratime", "nodiratime", "relatime",
        "norelatime", "atime", "noatime", "strictatime", "nostrictatime", "symfollow", "nosymfollow",
    )
)  # fmt: skip
#: Options of a single mount for which an opposite option exists.
_PAIRED = frozenset(option[1:] for option in OPTIONS) | {"sync", "async"}
#: These are dropped for a file: no links exist below it, and crun 1.8.1 does not know the option.
_OF_LINKS = ("rsymfollow", "rnosymfollow")


def without_recursive(options: Sequence[str]) -> list[str]:
    """The options for a mount of a file: recursive options become plain ones, and come last, as in runc."""
    plain = [option for option in options if option not in OPTIONS]
    return plain + [option[1:] for option in options if option in OPTIONS and option not in _OF_LINKS]


def without_overridden(options: Sequence[str]) -> list[str]:
    """The options without those that a later option contradicts or repeats."""
    last = {_about(option): number for number, option in enumerate(options) if option in _PAIRED}
    return [o for number, o in enumerate(options) if o not in _PAIRED or last[_about(o)] == number]


def adapted(spec: Document, *, is_dir: Callable[[str], bool] = os.path.isdir) -> Document:
    """The specification with options that have the same effect in crun as in runc. A missing source is left to crun."""
    if not spec.get("mounts"):
        return spec
    return {**spec, "mounts": [_adapted(mount, is_dir) for mount in spec["mounts"]]}


def _adapted(mount: Document, is_dir: Callable[[str], bool]) -> Document:
    options = mount.get("options") or ()
    if is_bind(mount) and OPTIONS & set(options) and not is_dir(mount.get("source") or ""):
        options = without_recursive(options)
    return {**mount, "options": without_overridden(options)} if options else mount


def _about(option: str) -> str:
    """A key that is equal for an option and its opposite."""
    return {"rw": "ro", "async": "sync"}.get(option, option.removeprefix("no"))
