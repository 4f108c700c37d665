"""The lab: a VM that simulates a physical host with an IOMMU and PCI devices.

Its root is an overlay over this host's files, which it mounts read-only by 9p. So installed programs run in the lab, at
the same paths, and written files disappear with the lab. :data:`DEVICES` lists its devices. All are bound to vfio-pci,
except the physical function of the SR-IOV NIC. The two virtual functions of this NIC are bound to vfio-pci.

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
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
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
#: no_timer_check: see :mod:`hawse.vm.arguments`. tsc=reliable: this kernel assumes that only the TSCs of Intel's CPUs
#: are synchronous (arch/x86/kernel/tsc.c, unsynchronized_tsc()). Otherwise it would read the ACPI timer, and each read
#: is an access to a device of QEMU.
_APPEND = "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable mitigations=off pci=hpiosize=0 intel_iommu=on"
#: Do not clear pages twice, and do not poll on an idle CPU.
_APPEND += " init_on_alloc=0 kvm.halt_poll_ns=0"
#: No checks in system calls that no test needs: with them Python programs in the lab take 10 % longer.
_APPEND += " apparmor=0 hardened_usercopy=off"
#: Do not bind a driver to the hotplug controller of QEMU's PCIe-to-PCI bridge: the group behind it would not be viable.
_APPEND += " initcall_blacklist=shpcd_init"
_APPEND += " unknown_nmi_panic"  # a hanging lab gets an NMI, see _report_hang()
#: The functions behind each root port. The bus number of a port is its position in this list, from 1.
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
#: The functions behind the bridge, in slots from 1 (its hotplug controller uses 0). They share one requester id.
BEHIND_BRIDGE: list[dict[str, str]] = [{"driver": "edu"}, {"driver": "pci-testdev", "membar": "8M"}]


#: Prints the evidence of a failed test as a compressed archive in base64.
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
    """A running lab, as a context manager. ``console``: the path of the log of its console, for evidence.

    Its templates are in a private directory: other tests use the templates of this host, which keeps only a few. With
    KVM the lab builds its templates itself.
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
        """Run a command in the lab, with a time limit in seconds.

        Raises OSError when the lab does not answer. The lab is then killed, and later commands raise at once.
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
            # A test that exceeded its time limit left an unread answer.
            while answer.get("number") != self._number:
                answer = json.loads(self._receive())
        except TimeoutError as error:
            try:
                asyncio.run(self._report_hang())
            finally:
                self._process.kill()
            raise ConnectionError(f"the lab does not answer; its console is {self.console}: {self._said()}") from error
        return Result(answer["code"], answer["output"], answer["errors"])

    def leave_template(self, machine: MachinePlan) -> None:
        """Build the template of a VM of the lab on this host, and pass it to the lab.

        For VMs without KVM: they boot on this host in seconds, and in the lab in minutes.
        """
        assert machine.template is not None
        digest = machine.template.digest
        if os.path.exists(f"{self._cache}/templates/{digest}"):
            return
        kept = Template(cache=self._cache, digest=digest, usable=False)
        build(msgspec.structs.replace(machine, template=kept))
        self.see_new_files()

    def see_new_files(self) -> None:
        """Let the lab find files that were created on this host after a failed lookup.

        The overlay and 9p remember failed lookups in dentries. This drops them (Linux,
        Documentation/admin-guide/sysctl/vm.rst).
        """
        assert self.run(["sh", "-c", "echo 2 >/proc/sys/vm/drop_caches"]).code == 0

    def python(self, text: str, *arguments: str, timeout: float | None = None) -> Result:
        """Run a Python program in the lab, which can import hawse and the tests."""
        return self._ask(argv=arguments, text=text, timeout=timeout)

    def save_evidence(self, directory: str) -> None:
        """Save the console. If the lab still answers, also save logs, states and stacks of its sandboxes."""
        shutil.copy(self.console, f"{directory}/lab-console.log")
        answer = self.python(_SAVE, timeout=patience(20))
        with open(f"{directory}/lab.tar.b64", "w") as file:
            file.write(answer.output or answer.errors)
        subprocess.run(["sh", "-c", "base64 -d <lab.tar.b64 | tar -xz"], cwd=directory, check=True)
        os.unlink(f"{directory}/lab.tar.b64")

    def control(self, line: str) -> str:
        """Run a command of the monitor of the lab's QEMU; returns its output (QEMU docs/system/monitor)."""

        async def run() -> str:
            async with self._qmp() as qmp:
                return str(await qmp.execute("human-monitor-command", {"command-line": line}, timeout=60))

        return asyncio.run(run())

    async def _report_hang(self) -> None:
        """Write the CPU registers of a hanging lab to its console, then let its kernel print a trace by an NMI."""
        async with self._qmp() as qmp:
            for _ in range(3):
                line = {"command-line": "info registers"}
                registers = await qmp.execute("human-monitor-command", line, timeout=60)
                with open(self.console, "a") as console:
                    console.write(f"\n{registers}\n")
            await qmp.execute("inject-nmi", {}, timeout=60)
            await asyncio.sleep(20)  # time for the emulated kernel to print its trace; it then exits

    @asynccontextmanager
    async def _qmp(self) -> AsyncIterator[Qmp]:
        qmp, channel = Qmp(), socket.socket(socket.AF_UNIX)
        channel.connect(self._monitor)
        await qmp.open(channel, seconds=60)
        try:
            yield qmp
        finally:
            await qmp.close()

    def _said(self) -> str:
        """The end of the console log."""
        with open(self.console, errors="replace") as console:
            return console.read()[-8192:]

    def _receive(self) -> bytes:
        """Receive the next answer. A part that was received before a time limit interrupted this is kept."""
        while len(self._received) < (end := 4 + int.from_bytes(self._received[:4], "big")):
            piece = self._channel.recv(1 << 20)
            if not piece:
                raise ConnectionError(f"the lab ended; its console is {self.console}: {self._said()}")
            self._received += piece
        answer, self._received = self._received[4:end], self._received[end:]
        return answer


def _go_first() -> None:
    """Raise the priority of this process: the tests of the lab run one after the other, as long as all other tests.

    With autogroup scheduling, the kernel divides CPU time among sessions, whose priority is in /proc/PID/autogroup
    (sched(7), "The autogroup feature").
    """
    with suppress(OSError):
        os.nice(-10)
        with open("/proc/self/autogroup", "w") as file:
            file.write("-10")


def command(kernel: str, initrd: str, mode: str) -> list[str]:
    """The command line of the lab's QEMU, without the serial line.

    The emulated CPU has AMD's virtualization (target/i386/tcg/system/svm_helper.c), so guests of the lab run with KVM
    and are emulated once, not twice. The lab has one CPU. With two, QEMU 11.1 sometimes delivers an interrupt between
    CPUs right after VMRUN, although the kernel has disabled interrupts there, and the kernel crashes.

    The CPU has no fast string operations (erms, fsrm), so Linux clears and copies memory by words. QEMU needs the same
    time to emulate a string instruction for a byte as for a word. A start of a sandbox in the lab takes 10 s of CPU
    time without these features, and 14 s with them.

    Hotplug is native. With ACPI hotplug, the registers of root ports show no active link and no present device (QEMU
    hw/acpi/pcihp.c, acpi_pcihp_device_plug_cb()). Linux waits for both after a bus reset, and hardware shows them.

    There is no HPET. With the HPET of QEMU 10 and without KVM, a CPU of the lab always stopped receiving timer
    interrupts after some tens of fault interrupts of the IOMMU. Without HPET it did not in 300 of them.
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
    """Arguments for the root ports and their devices. All NICs are connected to one hub."""
    arguments = ["-drive", "driver=null-co,id=d0,if=none,size=64M"]
    for number in range(4):
        arguments += ["-netdev", f"hubport,id=n{number},hubid=0"]
    for index, functions in enumerate(DEVICES):
        port = {"driver": "pcie-root-port", "id": f"rp{index}", "bus": "pcie.0", "addr": f"{0x4 + index:x}.0"}
        # The firmware has I/O windows for only a few ports.
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
    """Run a shell in the lab."""
    if not sys.stdin.isatty():
        print("the lab's shell needs a terminal", file=sys.stderr)
        return 1
    directory = os.path.join(_TOP, "build", "lab")
    kernel, initrd = _build(directory)
    return subprocess.call([*command(kernel, initrd, "shell"), "-serial", "mon:stdio"])


if __name__ == "__main__":
    sys.exit(main())
