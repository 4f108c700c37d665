"""The name of the mount that crun could not make because the guest's kernel has not its file system."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

HINT = "image.extra_modules in hawse's configuration names modules of the guest's kernel"
_BINDS = ("bind", "rbind")


def unknown_type(message: str, spec: Document, *, root: str = "") -> str:
    """A sentence with the mount's type and place, for crun's message ENODEV of mount(2); "" for another message.

    crun names the source and the place, and not the type. The kernel has loaded the modules that it found by now, so
    that its own list is complete (proc(5), /proc/filesystems).
    """
    if "mount `" not in message or not message.endswith("No such device"):
        return ""
    with open(f"{root}/proc/filesystems") as file:
        known = {line.split()[-1] for line in file if line.strip()}
    for mount in spec.get("mounts") or ():
        kind = mount.get("type") or ""
        is_bind = kind == "bind" or any(option in _BINDS for option in mount.get("options") or ())
        if not is_bind and kind.partition(".")[0] not in known:  # "fuse.sshfs" is one of fuse
            return (
                f"mounts: the guest's kernel has no file system {kind[:80]!r}, for {mount.get('destination', '')[:200]}"
            )
    return ""
