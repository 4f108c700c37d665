"""/sys of a container with a user namespace that uses the guest's network namespace.

The kernel lets only the owner of the network namespace mount a sysfs (Linux fs/sysfs/mount.c, sysfs_init_fs_context()).
crun 1.8.1 binds the guest's sysfs instead, but only if the mount is read-only and the user namespace does not map all
ids (src/libcrun/utils.c, check_running_in_user_namespace()). hawse binds it in every such container.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document


def with_bound_sysfs(spec: Document) -> Document:
    """The specification with binds of the guest's /sys instead of mounts of sysfs."""
    if any(namespace["type"] == "network" for namespace in (spec.get("linux") or {}).get("namespaces") or ()):
        return spec
    mounts = [
        mount | {"type": "bind", "source": "/sys", "options": ["bind", *(mount.get("options") or ())]}
        if mount.get("type") == "sysfs"
        else mount
        for mount in spec.get("mounts") or ()
    ]
    return {**spec, "mounts": mounts}
