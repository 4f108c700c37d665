"""Acceleration by a real probe: /dev/kvm that opens is no proof that a guest can run.

Some hosts let /dev/kvm be opened and a VM be created, and then fail at a model-specific register or never leave the
kernel's decompressor. So the guest's own kernel is booted once, without a root, until it speaks on the serial port.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace

from hawse.errors import HostError
from hawse.vm import cache
from hawse.vm.capabilities import Capabilities

_SECONDS = 30
#: What is read of what QEMU says, in bytes.
_MOST = 64 * 1024
_REFUSED = "a guest does not run with KVM here (often nested virtualization)"
#: The kernel's banner (init/version.c), printed by code that runs after decompression.
_PROOF = b"Linux version"


@dataclass(frozen=True)
class Accel:
    """What guests run with: the name "kvm" or "tcg", why, and whether that was found out just now."""

    name: str
    reason: str
    fresh: bool = False


def choose(
    requested: str,
    *,
    qemu: str,
    kernel: str,
    directory: str,
    device: str = "/dev/kvm",
    seconds: float = _SECONDS,
) -> Accel:
    """The acceleration for ``requested`` "auto", "kvm" or "tcg"; raises :class:`HostError` for a kvm that fails.

    ``seconds``: how long a guest kernel may take until its first output.
    """
    if requested == "tcg":
        return Accel("tcg", 'vm.accel = "tcg"')
    found = _probe_once(qemu, kernel, directory, device, seconds)
    if requested == "kvm" and found.name != "kvm":
        raise HostError(
            f'KVM cannot be used, as vm.accel = "kvm" requires: {found.reason}',
            hint='run on a host whose KVM works; with vm.accel = "auto" guests run under QEMU\'s TCG, which QEMU does '
            "not consider a security boundary",
        )
    return found


def one_thread(name: str, can: Capabilities, *, cpus: int) -> bool:
    """Whether a guest's CPUs have to take turns on one thread of the host's.

    Before 8.1 QEMU without KVM reads the code that it translates before it watches for writes to it: what another CPU
    writes in between is lost. Linux writes to its own code while it runs (a static key, arch/x86/kernel/alternative.c,
    text_poke_bp_batch()), by way of a breakpoint; with that one kept, every CPU runs into it for ever. QEMU's commit
    deba78709ae8, "accel/tcg: Always lock pages before translation", ends it.
    """
    return name == "tcg" and cpus > 1 and not can.at_least(8, 1)


def _probe_once(qemu: str, kernel: str, directory: str, device: str, seconds: float) -> Accel:
    try:
        status = os.stat(device)
    except OSError as error:
        return Accel("tcg", f"{device}: {error.strerror}")
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    key = [cache.file_key(qemu), cache.file_key(kernel), boot, status.st_rdev, status.st_mode, os.geteuid()]
    path = f"{directory}/accel.json"
    known = cache.read(path, key)
    if known is not None:
        return Accel(*known)
    found = _probe(qemu, kernel, seconds)
    cache.write(path, key, [found.name, found.reason])
    return replace(found, fresh=True)


def _probe(qemu: str, kernel: str, seconds: float) -> Accel:
    # With earlyprintk the kernel speaks as soon as it runs, in place of when its consoles are there.
    argv = [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot", "-serial", "stdio",
        "-machine", "q35,accel=kvm,kernel-irqchip=split", "-cpu", "host", "-m", "256M",
        "-kernel", kernel, "-append", "earlyprintk=serial,ttyS0 console=ttyS0 panic=-1",
    ]  # fmt: skip
    try:
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            assert process.stdout is not None
            spoke = _speaks(process.stdout.fileno(), seconds)
            process.kill()
            process.wait()
            errors.seek(0)
            words = errors.read(_MOST).decode(errors="replace").strip().splitlines()
    except OSError as error:
        return Accel("tcg", f"{qemu}: {error.strerror}")
    if spoke:
        return Accel("kvm", "a guest kernel ran")
    if words:
        # QEMU's own words may be an assertion of its source, which explains nothing to a user.
        return Accel("tcg", f"{_REFUSED}: {words[-1]}")
    return Accel("tcg", f"the guest kernel said nothing within {seconds:g} s")


def _speaks(fd: int, seconds: float) -> bool:
    """Whether the proof comes before the end of the output, and in time."""
    output, deadline = b"", time.monotonic() + seconds
    while _PROOF not in output:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(fd, 4096) if ready else b""
        if not piece:
            return False
        output = output[-len(_PROOF) :] + piece
    return True
