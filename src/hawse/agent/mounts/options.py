"""Mount options that crun 1.8.1 takes otherwise than runc.

- Of two that contradict each other the last counts, in the order of runc. crun mounts "ro" and "rw" read-only.
- crun opens the target of a mount with recursive options as a directory (src/libcrun/linux.c, open_mount_target()).
  Nothing can be mounted below a file, so for one they mean the same without their first letter.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hawse.json_text import Document

#: Of mount_setattr(2), as runc reads them (libcontainer/specconv/spec_linux.go, initMaps()).
OPTIONS = frozenset(
    f"r{name}"
    for name in (
        "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "diratime", "nodiratime", "relatime",
        "norelatime", "atime", "noatime", "strictatime", "nostrictatime", "symfollow", "nosymfollow",
    )
)  # fmt: skip
#: Options of one mount that have an opposite.
_PAIRED = frozenset(option[1:] for option in OPTIONS) | {"sync", "async"}
#: A file has no links below it to be followed, and crun 1.8.1 does not know the option.
_OF_LINKS = ("rsymfollow", "rnosymfollow")


def without_recursive(options: Sequence[str]) -> list[str]:
    """The options of a file's mount. The recursive ones are applied last, as in runc."""
    plain = [option for option in options if option not in OPTIONS]
    return plain + [option[1:] for option in options if option in OPTIONS and option not in _OF_LINKS]


def settled(options: Sequence[str]) -> list[str]:
    """The options without those that a later one contradicts or repeats."""
    last = {_about(option): number for number, option in enumerate(options) if option in _PAIRED}
    return [o for number, o in enumerate(options) if o not in _PAIRED or last[_about(o)] == number]


def adapted(spec: Document, *, is_dir: Callable[[str], bool] = os.path.isdir) -> Document:
    """The specification with options that mean to crun what they mean to runc. crun reports a missing source."""
    if not spec.get("mounts"):
        return spec
    return {**spec, "mounts": [_adapted(mount, is_dir) for mount in spec["mounts"]]}


def _adapted(mount: Document, is_dir: Callable[[str], bool]) -> Document:
    options = mount.get("options") or ()
    is_bind = mount.get("type") == "bind" or bool({"bind", "rbind"} & set(options))
    if is_bind and OPTIONS & set(options) and not is_dir(mount.get("source") or ""):
        options = without_recursive(options)
    return {**mount, "options": settled(options)} if options else mount


def _about(option: str) -> str:
    """The same for an option and its opposite."""
    return {"rw": "ro", "async": "sync"}.get(option, option.removeprefix("no"))
