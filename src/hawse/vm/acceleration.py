"""Choose the accelerator, KVM or TCG, by booting a guest kernel: opening /dev/kvm does not prove that a guest can run.

On some hosts /dev/kvm opens and a VM can be created, but then KVM fails at a model-specific register or the guest never
leaves the kernel's decompressor. So the guest kernel is booted once, without a root file system, until it prints its
banner on the serial port.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace

from hawse.cache import results
from hawse.errors import HostError
from hawse.vm.qemu_features import Capabilities

_SECONDS = 30
#: Maximum number of bytes that are read from QEMU's stderr.
_MAX_STDERR = 64 * 1024
_REFUSED = "a guest does not run with KVM here (often nested virtualization)"
#: The kernel's banner (init/version.c), which code prints that runs after decompression.
_BANNER = b"Linux version"


@dataclass(frozen=True)
class Accel:
    """The accelerator for guests: "kvm" or "tcg", the reason, and whether this process has just probed for it."""

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
    """Choose the accelerator for ``requested``: "auto", "kvm" or "tcg".

    ``seconds`` is the time limit for the guest kernel's first output.
    Raises :class:`HostError` where "kvm" is requested and does not work.
    """
    if requested == "tcg":
        return Accel("tcg", 'vm.accel = "tcg"')
    accel = _probe_once(qemu, kernel, directory, device, seconds)
    if requested == "kvm" and accel.name != "kvm":
        raise HostError(
            f'vm.accel = "kvm", but KVM cannot be used: {accel.reason}',
            hint='run on a host whose KVM works; with vm.accel = "auto" guests run under QEMU\'s TCG, which QEMU does '
            "not consider a security boundary",
        )
    return accel


def one_thread(name: str, can: Capabilities, *, cpus: int) -> bool:
    """Whether all virtual CPUs of a guest must share one host thread.

    Without KVM, QEMU before 8.1 reads the code that it translates before it write-protects the page: a write by another
    CPU in between is lost. Linux changes its own code at run time by way of a breakpoint (a static key,
    arch/x86/kernel/alternative.c, text_poke_bp_batch()). If the write that removes the breakpoint is lost, every CPU
    runs into it forever. Fixed by QEMU's commit deba78709ae8, "accel/tcg: Always lock pages before translation".
    """
    return name == "tcg" and cpus > 1 and not can.at_least(8, 1)


def _probe_once(qemu: str, kernel: str, directory: str, device: str, seconds: float) -> Accel:
    try:
        status = os.stat(device)
    except OSError as error:
        return Accel("tcg", f"{device}: {error.strerror}")
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    key = [results.file_key(qemu), results.file_key(kernel), boot, status.st_rdev, status.st_mode, os.geteuid()]
    path = f"{directory}/accel.json"
    cached = results.read(path, key)
    if cached is not None:
        return Accel(*cached)
    accel = _probe(qemu, kernel, seconds)
    results.write(path, key, [accel.name, accel.reason])
    return replace(accel, fresh=True)


def _probe(qemu: str, kernel: str, seconds: float) -> Accel:
    # With earlyprintk the kernel prints as soon as it runs, before its consoles are registered.
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
            booted = _prints_banner(process.stdout.fileno(), seconds)
            process.kill()
            process.wait()
            errors.seek(0)
            messages = errors.read(_MAX_STDERR).decode(errors="replace").strip().splitlines()
    except OSError as error:
        return Accel("tcg", f"{qemu}: {error.strerror}")
    if booted:
        return Accel("kvm", "a guest kernel ran")
    if messages:
        # QEMU's message may be an assertion in its source, which explains nothing to a user: _REFUSED precedes it.
        return Accel("tcg", f"{_REFUSED}: {messages[-1]}")
    return Accel("tcg", f"the guest kernel printed nothing within {seconds:g} s")


def _prints_banner(fd: int, seconds: float) -> bool:
    """Whether the kernel's banner arrives within ``seconds`` and before the end of the output."""
    output, deadline = b"", time.monotonic() + seconds
    while _BANNER not in output:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(fd, 4096) if ready else b""
        if not piece:
            return False
        output = output[-len(_BANNER) :] + piece
    return True
