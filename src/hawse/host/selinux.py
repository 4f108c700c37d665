"""Apply the SELinux label of a container to the programs of its virtual machine on the host.

The label confines QEMU and virtiofsd; the container's processes run on another kernel. Kata also labels these two
programs (src/runtime/virtcontainers/qemu.go, StartVM()).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hawse.errors import ConfigError, HostError
from hawse.linux import mountinfo

FIELD = "process.selinuxLabel"
#: The label of the thread's next program (Linux security/selinux/hooks.c, selinux_lsm_setattr()). Children inherit it,
#: and an execve clears it.
ATTRIBUTE = "/proc/thread-self/attr/exec"


def check(name: str, label: str, *, root: str = "") -> None:
    """Raise :class:`ConfigError` for a label on a host without SELinux, in runc's words (utils_linux.go,
    validateProcessSpec()). ``name`` is the document's name for errors."""
    if label and not enabled(root=root):
        raise ConfigError(
            f"{name}: {FIELD}: selinux label is specified in config, but selinux is disabled or not supported",
            hint="remove it, or turn SELinux off in the engine's configuration as well",
        )


def enabled(*, root: str = "") -> bool:
    """Whether SELinux is enabled on the host, by the same rule as in engines and runc.

    It is enabled if selinuxfs is mounted read-write, and this process's label is that of a policy
    (opencontainers/selinux go-selinux/selinux_linux.go, getEnabled()). A read-only mount hides SELinux from a
    container.
    """
    try:
        mounted = any(map(_is_selinuxfs, mountinfo.read_text(f"{root}/proc/self/mountinfo").split("\n")))
        if not mounted:
            return False
        with open(f"{root}/proc/self/attr/current", "rb") as current:
            return current.read(4096).rstrip(b"\0\n") != b"kernel"
    except OSError:
        return False


@contextmanager
def executing_as(label: str, *, attribute: str = ATTRIBUTE) -> Iterator[None]:
    """Apply the label to programs that this thread starts in the block; "" changes nothing.

    Raises :class:`HostError` naming the field if the policy does not contain the label or does not allow it.
    """
    if not label:
        yield
        return
    _write(attribute, label)
    try:
        yield
    except HostError as error:
        raise HostError(
            f"{FIELD}: {label[:200]}: {error.message}",
            hint=f"the host's policy must allow hawse's processes to use this label; {error.hint}",
        ) from None
    finally:
        _write(attribute, "")


def _is_selinuxfs(line: str) -> bool:
    """Whether a line of /proc/self/mountinfo (proc(5)) is a selinuxfs that is mounted read-write.

    The options of the mount precede the dash; type, source and the options of the file system follow it.
    """
    fields, _, rest = line.partition(" - ")
    words, kind = fields.split(" "), rest.split(" ")
    if len(words) < 6 or len(kind) < 3 or kind[0] != "selinuxfs":
        return False
    return "ro" not in (*words[5].split(","), *kind[2].split(","))


def _write(attribute: str, label: str) -> None:
    """Write the label in one write, as the kernel requires (fs/proc/base.c, proc_pid_attr_write()); "" clears it."""
    try:
        with open(attribute, "wb", buffering=0) as file:
            file.write(label.encode(errors="surrogateescape"))
    except OSError as error:
        raise HostError(
            f"{FIELD}: {label[:200] or 'the end of it'}: {attribute}: {error.strerror}",
            hint="the host's SELinux policy must contain the label: see `sesearch` or `seinfo`, or remove it",
        ) from None
