"""The lab: a virtual machine that plays a physical host with an IOMMU and PCI devices.

It sees this machine's files through 9p, read-only, under an overlay of its own: what is installed here runs there, at
the same paths, and what it writes is gone with it. Its devices are in :data:`DEVICES`; all are on vfio-pci, but for the
physical function of the SR-IOV NIC, whose two virtual functions are.

``python -m tests.lab.host shell`` is `make lab`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import msgspec

from hawse.commands.build_template import build
from hawse.plan.model import MachinePlan, Template
from hawse.vm.qmp import Qmp
from tests.lab import image
from tests.support.caches import CACHE
from tests.support.patience import patience
from tests.support.runtime import Result
from tests.support.suites import newest_qemu

_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: With no_timer_check: see :mod:`hawse.vm.arguments`. With tsc=reliable, since this kernel takes the TSC of no CPU but
#: Intel's for synchronous (arch/x86/kernel/tsc.c, unsynchronized_tsc()), and each look at the ACPI timer in its place
#: is one at a device of QEMU's.
_APPEND = "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable mitigations=off pci=hpiosize=0 intel_iommu=on"
#: Pages are cleared when they are given out, and not twice; a processor that waits is not kept busy.
_APPEND += " init_on_alloc=0 kvm.halt_poll_ns=0"
#: No checks at each call of the kernel that no test is about: a Python program takes a tenth longer with them here.
_APPEND += " apparmor=0 hardened_usercopy=off"
#: QEMU's PCIe-to-PCI bridge has a hotplug controller. With a driver on it, the group behind the bridge is not viable.
_APPEND += " initcall_blacklist=shpcd_init"
_APPEND += " unknown_nmi_panic"  # at the one that a lab is sent which hangs
#: A root port for each, in this order: its bus is the place in the list, from 1.
DEVICES: list[list[dict[str, str]]] = [
    [{"driver": "edu"}],
    [{"driver": "e1000e", "netdev": "n0", "romfile": ""}, {"driver": "e1000e", "netdev": "n1", "romfile": ""}],
    [{"driver": "e1000e", "netdev": "n2", "romfile": ""}],
    [{"driver": "igb", "netdev": "n3", "romfile": ""}],
    [{"driver": "nvme", "serial": "lab", "drive": "d0"}],
    [{"driver": "pci-testdev", "membar": "8G"}],
    *[[{"driver": "edu"}] for _ in range(12)],
    [{"driver": "pcie-pci-bridge", "id": "bridge"}],
]
#: Behind that bridge, in its slots from 1 on (0 is its own hotplug controller's): they have one requester id.
BEHIND_BRIDGE: list[dict[str, str]] = [{"driver": "edu"}, {"driver": "pci-testdev", "membar": "8M"}]


#: Prints what a failing test leaves in the lab as a compressed archive in base64.
_SAVE = """
import base64, io, sys, tarfile, tempfile
from tests.support import evidence
for root in ("/run/hawse", "/run/state", "/run/c/runtime", "/run/docker-test/exec/runtime-runc/moby"):
    evidence.watch(root, depth=2)
with tempfile.TemporaryDirectory() as directory:
    evidence.EVIDENCE = directory
    evidence.save("lab")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(f"{directory}/lab", "lab")
sys.stdout.write(base64.b64encode(archive.getvalue()).decode())
"""


class Lab:
    """A running lab, as a context. ``console`` is the path of its console's log, for evidence.

    Its templates are private, since other tests use those of this machine, which keeps only a few; under KVM it makes
    them itself.
    """

    def __init__(self, directory: str) -> None:
        self.console = f"{directory}/lab-console.log"
        self._monitor = f"{directory}/lab.qmp"
        self._directory = directory
        self._cache = f"{directory}/cache"
        self._channel, self._theirs = socket.socketpair()
        self._number = 0
        self._received = b""

    def __enter__(self) -> Lab:
        kernel, initrd = _build(self._directory)
        with open(self.console, "ab") as console:
            self._process = subprocess.Popen(
                [
                    *command(kernel, initrd, "serve"),
                    "-serial", "stdio",
                    "-qmp", f"unix:{self._monitor},server=on,wait=off",
                    "-chardev", f"socket,id=commands,fd={self._theirs.fileno()}",
                    "-device", "virtio-serial-pci",
                    "-device", "virtserialport,chardev=commands,name=lab.commands",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=(self._theirs.fileno(),),
                start_new_session=True,
                preexec_fn=_go_first,
            )  # fmt: skip
        self._theirs.close()
        try:
            os.makedirs(f"{self._cache}/templates", mode=0o700)
            place = f"mkdir -p {CACHE}/templates && mount --bind {self._cache}/templates {CACHE}/templates"
            assert self.run(["sh", "-c", place], timeout=patience(75)).code == 0
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._process.terminate()
        self._process.wait()

    def run(self, argv: Sequence[str], *, timeout: float | None = None, cwd: str = _TOP) -> Result:
        """Run a command in the lab; its limit is in seconds.

        Raises OSError when the lab does not answer: it is ended then, and every later command raises at once.
        """
        return self._ask(argv=argv, timeout=timeout, cwd=cwd)

    def _ask(self, *, argv: Sequence[str], timeout: float | None, cwd: str = _TOP, text: str | None = None) -> Result:
        self._number += 1
        timeout = patience(30) if timeout is None else timeout
        asked = {"number": self._number, "argv": list(argv), "cwd": cwd, "timeout": timeout, "text": text}
        request = json.dumps(asked).encode()
        self._channel.settimeout(timeout + patience(15))
        try:
            self._channel.sendall(struct.pack(">I", len(request)) + request)
            answer: dict[str, Any] = {}
            # A test that is ended by its limit leaves an answer unread.
            while answer.get("number") != self._number:
                answer = json.loads(self._receive())
        except TimeoutError as error:
            try:
                asyncio.run(self._make_it_say_where_it_is())
            finally:
                self._process.kill()
            raise ConnectionError(f"the lab does not answer; its console is {self.console}: {self._said()}") from error
        return Result(answer["code"], answer["output"], answer["errors"])

    def leave_template(self, machine: MachinePlan) -> None:
        """Boot a machine of the lab's on this machine, in seconds, and have the lab know its template.

        For one without KVM, which would take minutes to boot there.
        """
        assert machine.template is not None
        digest = machine.template.digest
        if os.path.exists(f"{self._cache}/templates/{digest}"):
            return
        kept = Template(cache=self._cache, digest=digest, usable=False)
        build(msgspec.structs.replace(machine, template=kept))
        self.see_new_files()

    def see_new_files(self) -> None:
        """Have the lab look again for files of this machine that it did not find before.

        Its overlay and 9p keep that in dentries, which this drops (Documentation/admin-guide/sysctl/vm.rst of Linux).
        """
        assert self.run(["sh", "-c", "echo 2 >/proc/sys/vm/drop_caches"]).code == 0

    def python(self, text: str, *arguments: str, timeout: float | None = None) -> Result:
        """Run a program of Python there, with hawse and the tests importable."""
        return self._ask(argv=arguments, text=text, timeout=timeout)

    def save_evidence(self, directory: str) -> None:
        """Save the console, and logs, states and stacks of the sandboxes in the lab where it still answers."""
        shutil.copy(self.console, f"{directory}/lab-console.log")
        answer = self.python(_SAVE, timeout=patience(20))
        with open(f"{directory}/lab.tar.b64", "w") as file:
            file.write(answer.output or answer.errors)
        subprocess.run(["sh", "-c", "base64 -d <lab.tar.b64 | tar -xz"], cwd=directory, check=True)
        os.unlink(f"{directory}/lab.tar.b64")

    async def _make_it_say_where_it_is(self) -> None:
        """Have a lab that hangs tell its processor's registers, and its kernel panic with a trace, on the console."""
        monitor, channel = Qmp(), socket.socket(socket.AF_UNIX)
        channel.connect(self._monitor)
        await monitor.open(channel, seconds=60)
        for _ in range(3):
            line = {"command-line": "info registers"}
            registers = await monitor.execute("human-monitor-command", line, timeout=60)
            with open(self.console, "a") as console:
                console.write(f"\n{registers}\n")
        await monitor.execute("inject-nmi", {}, timeout=60)
        await asyncio.sleep(20)  # it is emulated, and ends when it has panicked
        await monitor.close()

    def _said(self) -> str:
        """The end of its console."""
        with open(self.console, errors="replace") as console:
            return console.read()[-8192:]

    def _receive(self) -> bytes:
        """The next answer. What was received of it stays when a test's limit interrupts this."""
        while len(self._received) < (end := 4 + int.from_bytes(self._received[:4], "big")):
            piece = self._channel.recv(1 << 20)
            if not piece:
                raise ConnectionError(f"the lab ended; its console is {self.console}: {self._said()}")
            self._received += piece
        answer, self._received = self._received[4:end], self._received[end:]
        return answer


def _go_first() -> None:
    """Raise this process's priority. The lab's tests run one after the other, and take as long as all other tests.

    Where the kernel divides CPU time among sessions first, a session has a priority of its own, /proc/PID/autogroup
    (sched(7), "The autogroup feature").
    """
    with suppress(OSError):
        os.nice(-10)
        with open("/proc/self/autogroup", "w") as file:
            file.write("-10")


def command(kernel: str, initrd: str, mode: str) -> list[str]:
    """The lab's QEMU, without its serial line.

    The emulated processor has AMD's virtualization (target/i386/tcg/system/svm_helper.c), so that guests of the lab run
    under its KVM and are emulated once, not twice. There is one: with two, QEMU 11.1 delivers at times an interrupt
    between them where the lab's kernel has them held back, right behind VMRUN, and that kernel dies.

    Without fast string operations (erms, fsrm): Linux then clears and copies memory by words and not by bytes, and QEMU
    takes as long to emulate a string instruction for a byte as for a word. A start of a sandbox there takes 10 s of CPU
    time without them, and 14 s with them.

    With native hotplug: with ACPI's the registers of root ports have no active link and no present device (QEMU
    hw/acpi/pcihp.c, acpi_pcihp_device_plug_cb()). Linux waits for both after a bus reset, and hardware has them.

    Without HPET: with QEMU 10's, and without KVM, a CPU of the lab's stopped getting timer interrupts within some tens
    of interrupts of the IOMMU's faults, every time; without it, not in 300 of them.
    """
    return [
        newest_qemu(), "-accel", "tcg,thread=multi", "-machine", "q35,kernel-irqchip=split,hpet=off",
        "-cpu", "max,erms=off,fsrm=off", "-m", "6144", "-smp", "1",
        "-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
        "-device", "intel-iommu,intremap=on,caching-mode=on",
        *_devices(),
        "-virtfs", "local,path=/,mount_tag=hostfs,security_model=none,readonly=on,multidevs=remap",
        "-kernel", kernel, "-initrd", initrd,
        "-append", f"{_APPEND} -- {mode}",
    ]  # fmt: skip


def _devices() -> list[str]:
    """The ports and what is in them; all NICs meet in one hub."""
    arguments = ["-drive", "driver=null-co,id=d0,if=none,size=64M"]
    for number in range(4):
        arguments += ["-netdev", f"hubport,id=n{number},hubid=0"]
    for index, functions in enumerate(DEVICES):
        port = {"driver": "pcie-root-port", "id": f"rp{index}", "bus": "pcie.0", "addr": f"{0x4 + index:x}.0"}
        # Firmware has I/O windows for a few ports alone.
        reserve = {} if "netdev" in functions[0] or "id" in functions[0] else {"io-reserve": "0"}
        arguments += ["-device", _option(port | {"slot": str(index + 1), "chassis": str(index + 1)} | reserve)]
        for number, function in enumerate(functions):
            place = {"bus": f"rp{index}", "addr": f"0.{number}"} | ({"multifunction": "on"} if functions[1:] else {})
            arguments += ["-device", _option(function | place)]
    for slot, function in enumerate(BEHIND_BRIDGE, 1):
        arguments += ["-device", _option(function | {"bus": "bridge", "addr": f"{slot:x}.0"})]
    return arguments


def _option(properties: dict[str, str]) -> str:
    return ",".join([properties["driver"], *(f"{k}={v}" for k, v in properties.items() if k != "driver")])


def _build(directory: str) -> tuple[str, str]:
    inside = os.path.join(_TOP, "tests", "lab", "inside.py")
    return image.build(directory, python=sys.executable, inside=inside, cache=CACHE)


def main() -> int:
    """A shell in the lab."""
    if not sys.stdin.isatty():
        print("the lab's shell needs a terminal", file=sys.stderr)
        return 1
    directory = os.path.join(_TOP, "build", "lab")
    kernel, initrd = _build(directory)
    return subprocess.call([*command(kernel, initrd, "shell"), "-serial", "mon:stdio"])


if __name__ == "__main__":
    sys.exit(main())
