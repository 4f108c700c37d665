"""The SELinux label of a container, which its virtual machine's programs have on the host.

What the label keeps apart from the host are QEMU and virtiofsd: the container's own processes are another kernel's.
Kata labels the two likewise (src/runtime/virtcontainers/qemu.go, StartVM()).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hawse.errors import ConfigError, HostError
from hawse.linux import mountinfo

FIELD = "process.selinuxLabel"
#: What the thread's next program will have (Linux security/selinux/hooks.c, selinux_lsm_setattr(); a child inherits
#: it, and an execve takes it away).
ATTRIBUTE = "/proc/thread-self/attr/exec"


def check(name: str, label: str, *, root: str = "") -> None:
    """Raise :class:`ConfigError` for a label on a host without SELinux, in runc's words (utils_linux.go,
    validateProcessSpec()). ``name`` is the configuration's."""
    if label and not enabled(root=root):
        raise ConfigError(
            f"{name}: {FIELD}: selinux label is specified in config, but selinux is disabled or not supported",
            hint="remove it, or turn SELinux off in the engine's configuration as well",
        )


def enabled(*, root: str = "") -> bool:
    """Whether the host has a policy that labels mean something to.

    As engines and runc find out (opencontainers/selinux go-selinux/selinux_linux.go, getEnabled()): selinuxfs is
    mounted, and not read-only, as it is for those who are to see none; and a process has a label of a policy.
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
    """Programs that this thread starts in the block have the label; "" changes nothing.

    Raises :class:`HostError` naming the field where the policy knows no such label or does not let it be taken.
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
            hint=f"the host's policy must let hawse's processes become that; {error.hint}",
        ) from None
    finally:
        _write(attribute, "")


def _is_selinuxfs(line: str) -> bool:
    """A line of /proc/self/mountinfo (proc(5)): options of the mount, and after the dash type, source, the file
    system's own options."""
    fields, _, rest = line.partition(" - ")
    words, kind = fields.split(" "), rest.split(" ")
    if len(words) < 6 or len(kind) < 3 or kind[0] != "selinuxfs":
        return False
    return "ro" not in (*words[5].split(","), *kind[2].split(","))


def _write(attribute: str, label: str) -> None:
    """In one write, as the kernel wants it (fs/proc/base.c, proc_pid_attr_write()); one of nothing clears it."""
    try:
        with open(attribute, "wb", buffering=0) as file:
            file.write(label.encode(errors="surrogateescape"))
    except OSError as error:
        raise HostError(
            f"{FIELD}: {label[:200] or 'the end of it'}: {attribute}: {error.strerror}",
            hint="the host's SELinux policy must know the label: see `sesearch` or `seinfo`, or remove it",
        ) from None
