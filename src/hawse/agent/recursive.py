"""Recursive mount options of files.

crun opens the target of a mount with such options as a directory (crun 1.8.1 src/libcrun/linux.c, open_mount_target()).
Nothing can be mounted below a file, so for one they mean the same without their first letter.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

#: Of mount_setattr(2), as runc reads them (libcontainer/specconv/spec_linux.go, initMaps()).
OPTIONS = frozenset(
    f"r{name}"
    for name in (
        "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "diratime", "nodiratime", "relatime",
        "norelatime", "atime", "noatime", "strictatime", "nostrictatime", "symfollow", "nosymfollow",
    )
)  # fmt: skip
#: A file has no links below it to be followed, and crun 1.8.1 does not know the option.
_OF_LINKS = ("rsymfollow", "rnosymfollow")


def without_recursive(options: Sequence[str]) -> list[str]:
    """The options of a file's mount. The recursive ones are applied last, as runc and crun do."""
    plain = [option for option in options if option not in OPTIONS]
    return plain + [option[1:] for option in options if option in OPTIONS and option not in _OF_LINKS]


def adapt(spec: dict[str, Any], *, is_dir: Callable[[str], bool] = os.path.isdir) -> None:
    """Change the options of binds of files, in place. A source that is missing is crun's to report."""
    for mount in spec.get("mounts") or ():
        options = mount.get("options") or ()
        is_bind = mount.get("type") == "bind" or bool({"bind", "rbind"} & set(options))
        if is_bind and OPTIONS & set(options) and not is_dir(mount.get("source") or ""):
            mount["options"] = without_recursive(options)
