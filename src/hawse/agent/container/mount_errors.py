"""Identify the mount that crun could not mount because the guest kernel lacks its file system."""

from __future__ import annotations

from hawse.oci.document import is_bind

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

HINT = "add the module of the file system to image.extra_modules in hawse's configuration"


def unknown_type(message: str, spec: Document, *, root: str = "") -> str:
    """The error text with the mount's type and destination, if ``message`` is crun's for ENODEV of mount(2); else "".

    crun's message contains the source and the destination, but not the type. By now the kernel has loaded all modules
    that it could find, so its list of file systems is complete (proc(5), /proc/filesystems).
    """
    if "mount `" not in message or not message.endswith("No such device"):
        return ""
    with open(f"{root}/proc/filesystems") as file:
        known = {line.split()[-1] for line in file if line.strip()}
    for mount in spec.get("mounts") or ():
        kind = mount.get("type") or ""
        if not is_bind(mount) and kind.partition(".")[0] not in known:  # "fuse.sshfs" is a subtype of fuse
            return (
                f"mounts: the guest kernel has no file system {kind[:80]!r}, for {mount.get('destination', '')[:200]}"
            )
    return ""
