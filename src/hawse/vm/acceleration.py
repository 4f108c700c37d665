"""Choose the accelerator, KVM or TCG, by booting a guest: opening /dev/kvm does not prove that a guest can run.

On some hosts /dev/kvm opens and a VM can be created, but then KVM fails at a model-specific register, the guest never
leaves the kernel's decompressor, or KVM stops at an instruction that it cannot emulate, when the kernel has already
printed many lines. So the guest image is booted once, until its first program reports on the serial port.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial

from hawse.cache import results
from hawse.errors import HostError
from hawse.link.agreed import PROBE, PROBED
from hawse.linux.processes import die_with
from hawse.vm.qemu_features import Capabilities

#: Maximum seconds of a guest's boot with each accelerator: the default of vm.boot_seconds.
BOOT_SECONDS = {"kvm": 30.0, "tcg": 180.0}
#: Podman ends a creation after 240 s, and after a failed probe the guest has to boot without KVM.
_MOST_SECONDS = 60.0
#: Maximum number of bytes that are kept of QEMU's stderr, and of a line of the guest's console.
_MAX_STDERR, _MAX_LINE = 64 * 1024, 200
_REFUSED = "a guest does not run with KVM here (often nested virtualization)"
#: QEMU stops a VM that KVM cannot continue, prints the CPU's registers on stderr, and does not exit (QEMU
#: accel/kvm/kvm-all.c, kvm_cpu_exec(); target/i386/cpu-dump.c).
_REGISTERS = re.compile(rb"\n[ER]AX=")


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
    initrd: str,
    directory: str,
    device: str = "/dev/kvm",
    seconds: float = BOOT_SECONDS["kvm"],
) -> Accel:
    """Choose the accelerator for ``requested``: "auto", "kvm" or "tcg".

    ``kernel`` and ``initrd`` are booted, unless ``device`` does not exist, for at most ``seconds`` or a minute.
    Raises :class:`HostError` where "kvm" is requested and does not work.
    """
    if requested == "tcg":
        return Accel("tcg", 'vm.accel = "tcg"')
    accel = _probe_once(qemu, kernel, initrd, directory, device, min(seconds, _MOST_SECONDS))
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


def _probe_once(qemu: str, kernel: str, initrd: str, directory: str, device: str, seconds: float) -> Accel:
    try:
        status = os.stat(device)
    except OSError as error:
        return Accel("tcg", f"{device}: {error.strerror}")
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    files = [results.file_key(path) for path in (qemu, kernel, initrd)]
    key = [*files, seconds, boot, status.st_rdev, status.st_mode, os.geteuid()]
    path = f"{directory}/accel.json"
    with ExitStack() as lock:
        cached = results.read(path, key)
        if cached is None:
            # Probes at the same time would slow each other, and the slowest would decide for all.
            with suppress(OSError, HostError):  # without a cache that can be written, each start probes
                lock.enter_context(results.locked(f"{directory}/accel.lock"))
            cached = results.read(path, key)
        if cached is not None:
            return Accel(*cached)
        accel = _probe(qemu, kernel, initrd, seconds)
        results.write(path, key, [accel.name, accel.reason])
    return replace(accel, fresh=True)


def _probe(qemu: str, kernel: str, initrd: str, seconds: float) -> Accel:
    # With earlyprintk the kernel prints as soon as it runs, before its consoles are registered.
    argv = [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot", "-serial", "stdio",
        "-machine", "q35,accel=kvm,kernel-irqchip=split", "-cpu", "host", "-m", "512M",
        "-kernel", kernel, "-initrd", initrd,
        "-append", f"earlyprintk=serial,ttyS0 console=ttyS0 panic=-1 rdinit=/init -- {PROBE}",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    own = os.pidfd_open(os.getpid())
    try:
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, preexec_fn=partial(die_with, own)
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            output = _Output(process.stdout.fileno(), process.stderr.fileno())
            try:
                runs = output.reports(seconds)
            finally:
                process.kill()
    except OSError as error:
        return Accel("tcg", f"{qemu}: {error.strerror}")
    finally:
        os.close(own)
    return Accel("kvm", "a guest ran") if runs else Accel("tcg", output.reason(seconds))


class _Output:
    """What QEMU has printed on stdout, which is the guest's console, and on stderr."""

    def __init__(self, console: int, stderr: int) -> None:
        self._console, self._stderr = console, stderr
        self._lines = b""
        self._errors = b""

    def reports(self, seconds: float) -> bool:
        """Whether the guest's first program reports within ``seconds``, while QEMU runs the guest."""
        open_files, deadline = {self._console, self._stderr}, time.monotonic() + seconds
        while open_files and not _REGISTERS.search(self._errors) and (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([*open_files], [], [], left)
            for fd in ready:
                piece = os.read(fd, 4096)
                if not piece:
                    open_files.remove(fd)
                elif fd == self._stderr:
                    self._errors = (self._errors + piece)[-_MAX_STDERR:]
                else:
                    self._lines = (self._lines + piece)[-2 * 4096 :]
            if PROBED.encode() in self._lines:
                return True
        return False

    def reason(self, seconds: float) -> str:
        """Why the guest does not run, in words for the user."""
        messages = self._errors.decode(errors="replace").strip().splitlines()
        if messages:
            # The last message may be an assertion in QEMU's source or a dump of registers, which explains nothing to a
            # user: _REFUSED precedes it.
            message = next((line for line in messages if "kvm" in line.lower()), messages[-1])
            return f"{_REFUSED}: {message}"
        lines = self._lines.decode(errors="replace").strip().splitlines()
        if not lines:
            return f"the guest kernel printed nothing within {seconds:g} s"
        last = lines[-1][:_MAX_LINE]
        return f"the guest's first program did not run within {seconds:g} s; the console ends with: {last}"
