"""docs/errors.md: each situation is reproduced here, and its error must be the one on the page.

``python -m tests.unit.test_errors`` prints the page.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import re
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hawse.agent import syscalls
from hawse.agent.devices import Node as GuestNode
from hawse.agent.devices import rewrite_devices
from hawse.agent.hardware import bind_vfio
from hawse.agent.modules import Modules
from hawse.agent.mount_errors import HINT, unknown_type
from hawse.agent.native import bind_native
from hawse.agent.uevents import Uevents
from hawse.config import ANNOTATIONS, Config, Devices, Vm
from hawse.container.ancestors import Allowed, Limit
from hawse.container.ancestors import check as check_allowance
from hawse.container.backend import by_file
from hawse.container.client import check_version
from hawse.container.confine import plan_jail
from hawse.container.descriptors import Descriptor, preserve
from hawse.container.devices import check_tokens, find_groups, plug_steps, shape, unused_token
from hawse.container.hugepages import Wanted, decide
from hawse.container.modules import check_loaded
from hawse.container.nodes import disk_host
from hawse.container.notified import unheard
from hawse.container.notify import problem, report_ready
from hawse.container.options import DeviceOptions, device_options
from hawse.container.privileged import leave_out
from hawse.errors import HawseError, RefusedError, VmError, from_wire
from hawse.install import edits
from hawse.jail import users
from hawse.linux import mounts, oom_score
from hawse.linux.processes import open_process
from hawse.nodes import decide as nodes
from hawse.nodes.decide import Wish
from hawse.nodes.numbers import strangers
from hawse.oci import addresses, cpusets
from hawse.oci.fields import FIELDS, Fate, review
from hawse.oci.guest import plan_guest
from hawse.oci.host_sockets import find_special, obstacle, patterns_of
from hawse.oci.load import load_bundle
from hawse.oci.notify import Notify
from hawse.oci.overlay import Overlay
from hawse.oci.pods import CONTAINER
from hawse.oci.template import example
from hawse.oci.types import Device, DeviceRule
from hawse.sandbox import devices, selinux
from hawse.sandbox.attachments import Attachments
from hawse.sandbox.claims import Claims
from hawse.sandbox.complaints import Complaints
from hawse.sandbox.control import ControlCgroup
from hawse.sandbox.disks import Disks
from hawse.sandbox.origins import Origin
from hawse.sandbox.plan import DiskPlan, Share
from hawse.sandbox.room import Room
from hawse.sandbox.share import ShareRoot, Source, enter_private_namespace, open_sources
from hawse.sandbox.state import Store
from hawse.vfio import dma, memlock, obstacles, resets, widths
from hawse.vfio.allowed import check_allowed
from hawse.vfio.devices import Node, find_request
from hawse.vfio.emulated import EmulatedGroup, read_table
from hawse.vfio.groups import Bar, Function, HostGroup, check_free, check_viable, read_group
from hawse.vfio.obstacles import Accepted, check_token
from hawse.vm import image, packages, virtiofsd
from hawse.vm.accel import choose
from hawse.vm.capabilities import Capabilities
from hawse.vm.image_collect import hold
from hawse.vm.image_modules import add_autoload
from hawse.vm.needs import needs_of
from hawse.vm.ports import MIB, FunctionShape, GroupShape, Port, place, plan_ports
from hawse.vm.qmp import MOST_EVENTS, Qmp
from hawse.vm.size import Limits
from tests.support.bundles import write
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.forked import in_child
from tests.support.groups import BOUND, EDU, NICS, plan, wanted
from tests.support.sysfs import FakeSysfs
from tests.support.vfio_host import C, Host

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
PORTS = [Port("port2", 4, True, 2 * MIB, 2 * MIB)]
Act = Callable[[FakeSysfs], Any]


def asks(path: str, major: int = 511, minor: int = 9) -> Act:
    """A container requests a node."""
    device = Device(path=path, type="c", major=major, minor=minor)
    return lambda host: find_request([device], emulated={}, root=host.root)


def group(*drivers: str, then: Callable[[Any, str], Any]) -> Act:
    """The result of ``then`` for the host's group 7, whose functions are bound to these drivers."""

    def act(host: FakeSysfs) -> Any:
        for number, driver in enumerate(drivers):
            host.function(f"0000:3b:00.{number}", group=7, driver=driver)
        return then(read_group(7, root=host.root), host.root)

    return act


def bridge(host: FakeSysfs) -> Any:
    host.function("0000:00:1c.0", group=7, class_code=0x060400)
    return read_group(7, root=host.root)


def hotplug_bridge(host: FakeSysfs) -> Any:
    """A bridge whose driver may do DMA, according to the kernel."""
    host.function("0000:3b:00.0", group=7)
    host.function("0000:00:1c.0", group=7, driver="shpchp", class_code=0x060400)
    return check_viable(read_group(7, root=host.root))


def mediated(host: FakeSysfs) -> Any:
    host.member(7, "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "../../../../devices/pci0000:00/0000:00:02.0")
    return read_group(7, root=host.root)


def beyond_binding(attribute: str, text: str) -> Act:
    """The check of a group with this text in an attribute in sysfs."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=7)
        host.write(f"sys/kernel/iommu_groups/7/{attribute}", text)
        return obstacles.check(read_group(7, root=host.root), root=host.root)

    return act


def open_elsewhere(host: FakeSysfs) -> Any:
    """The test simulates the kernel's answer; the process is found in a fake /proc."""

    def busy(_path: str, _flags: int) -> int:
        raise OSError(errno.EBUSY, "")

    host.function("0000:3b:00.0", group=7)
    host.write("dev/vfio/7", "")
    host.link("proc/4242/fd/9", f"{host.root}/dev/vfio/7")
    host.write("proc/4242/comm", "qemu-system-x86\n")
    return check_free(read_group(7, root=host.root), root=host.root, open_node=busy)


def binding(*addresses: str, prepare: Callable[[Host], Any] = lambda _host: None) -> Act:
    """Bind functions of a prepared host: 0000:3b:00.0 and .1 are one group, 0000:3c:00.0 is another."""

    def act(fake: FakeSysfs) -> Any:
        host = Host(fake.root)
        prepare(host)
        return host.take(*addresses)

    return act


def routing(host: Host) -> None:
    host.below(C, "net", "net/eth0")
    host.write("proc/net/route", "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")


def mounted(host: Host) -> None:
    host.below(C, "block", "nvme/nvme0/nvme0n1")
    host.write("sys/class/block/nvme0n1/dev", "259:0\n")
    host.write("proc/self/mountinfo", "29 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n")


def virtual_functions(host: Host) -> None:
    host.write(f"sys/bus/pci/devices/{C}/sriov_numvfs", "2\n")


def in_use(host: Host) -> None:
    host.kernel.users[13] = ["dpdk-testpmd (pid 4242)"]


def held(host: Host) -> None:
    """The write that unbinds the function from its driver does not return."""
    host.kernel.errors["drivers/e1000e/unbind", f"{C}\n"] = -1


def groupless(host: FakeSysfs) -> Any:
    host.write("sys/bus/pci/devices/0000:3b:00.0/vendor", "")
    return find_groups(["3b:00.0"], {}, root=host.root)


def odd_bars(host: FakeSysfs) -> Any:
    host.function("0000:3b:00.0", group=7, resource="0x1 0x2")
    return read_group(7, root=host.root)


def reset_by(methods: str, *, accepted: bool = False) -> Act:
    """A device with these reset methods, and the message before it is passed."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=7, behind="0000:00:1c.0", resets=methods)
        group_7 = read_group(7, root=host.root)
        obstacles.check(group_7, accepted=Accepted(unresettable=accepted), root=host.root)
        return resets.warning(group_7, root=host.root)

    return act


def interrupts(*chips: str) -> Act:
    """VFIO is configured to work without interrupt remapping; the host has these interrupt controllers."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=7)
        host.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")
        for number, chip in enumerate(chips):
            host.write(f"sys/kernel/irq/{number}/chip_name", f"{chip}\n")
        return obstacles.check(read_group(7, root=host.root), root=host.root)

    return act


def without_kvm(host: FakeSysfs) -> Any:
    return choose("kvm", qemu="/usr/bin/true", kernel="", directory="/none", device=f"{host.root}/dev/kvm")


def virtual(token: str) -> Callable[[FakeSysfs], Any]:
    """A virtual function whose physical function is bound to vfio-pci, and Debian 12's QEMU."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=6)
        host.function("0000:3b:02.0", group=7)
        os.symlink("../0000:3b:00.0", f"{host.root}/sys/bus/pci/devices/0000:3b:02.0/physfn")
        group_7 = read_group(7, root=host.root)
        check_token(group_7, token)
        can = Capabilities("7.2.22", frozenset({"vfio-pci"}), frozenset(), vfio_properties=frozenset({"host"}))
        return check_tokens([group_7], DeviceOptions(vf_token=token), lambda: can)

    return act


def by_files(host: FakeSysfs, backend: str, *, iommu: bool = True, qemu: str = "7.2.22") -> Any:
    """Group 7 is requested by a device file, on a host with device files whose kernel cannot map memory by its file."""
    host.function("0000:3b:00.0", group=7)
    host.device_file("0000:3b:00.0", 0, 510, 0)
    if not iommu:
        os.unlink(f"{host.root}/dev/iommu")
    can = Capabilities(qemu, frozenset(), frozenset(), frozenset() if qemu.startswith("7.") else frozenset({"iommufd"}))
    files, options = [Node("/dev/vfio/devices/vfio0", 510, 0, 7)], DeviceOptions(backend=backend)
    groups = [read_group(7, root=host.root)]
    return by_file(groups, files, options, lambda: can, maps_files=lambda: False, root=host.root)[1][0]


def no_files(_host: FakeSysfs) -> Any:
    """A guest whose kernel does not support device files."""
    spec = {"linux": {"devices": [{"path": "/dev/vfio/devices/vfio0"}]}}
    return rewrite_devices(spec, [GuestNode("/dev/vfio/devices/vfio0", 510, 0, 9, None, None)])[0][1]


def shapes(count: int, *, functions: int = 1, emulated: bool = False, **sizes: Any) -> Act:
    """The port plan of this number of groups."""
    groups = [GroupShape(n + 1, (FunctionShape(**sizes),) * functions, emulated) for n in range(count)]
    return lambda _host: plan_ports(groups)


def later(spares: list[Port], *, functions: int = 1, **sizes: Any) -> Act:
    """A group is attached to a running VM with these free ports."""
    return lambda _host: place(GroupShape(7, (FunctionShape(**sizes),) * functions), spares)


def annotation(name: str, value: str, allowed: tuple[str, ...] = ANNOTATIONS) -> Act:
    config = Config(devices=Devices(annotations=allowed))
    return lambda _host: device_options(config, {name: value})


def not_allowed(_host: FakeSysfs) -> Any:
    """devices.allow has only a pattern for other functions."""
    group = HostGroup(7, (Function("0000:3b:00.0", 0x8086, 0x10D3, 0x020000, "vfio-pci", ()),))
    return check_allowed([group], ["0000:81:*"])


def emulated(key: str, *models: str) -> Act:
    return lambda _host: read_table({key: models})


def in_guest(*, driver: str = "vfio-pci", there: bool = True, group: bool = True) -> Act:
    """The agent's view of a function that was plugged."""

    def act(guest: FakeSysfs) -> Any:
        guest.write("sys/bus/pci/drivers_probe", "")
        if there:
            guest.function("0000:02:00.0", group=6, driver=driver)
        if not group:
            os.unlink(f"{guest.root}/sys/bus/pci/devices/0000:02:00.0/iommu_group")
        uevents = Uevents()
        try:
            return bind_vfio(uevents, "0000:02:00.0", seconds=0.2, root=guest.root)
        finally:
            uevents.close()

    return act


def left_to_the_guest(guest: FakeSysfs) -> Any:
    """Mode guest-kernel, and a guest without a driver for the device."""
    guest.write("sys/bus/pci/drivers_probe", "")
    guest.function("0000:02:00.0", group=6, driver="")
    guest.write("drivers/modules.dep", "")
    uevents = Uevents()
    try:
        return bind_native(uevents, "0000:02:00.0", drivers=f"{guest.root}/drivers", seconds=0.2, root=guest.root)
    finally:
        uevents.close()


def claimed_twice(_host: FakeSysfs) -> Any:
    """Two containers of one VM request the same group."""
    attachment = plan(EDU)
    claims = Claims(attachment.ports)
    claims.claim(attachment.plugs, owner="one")
    return claims.claim(attachment.plugs, owner="two")


def running(qmp: FakeQmp, answers: dict[str, Any], *groups: EmulatedGroup, then: Callable[[Attachments], Any]) -> Act:
    """A running sandbox whose QEMU and guest answer as given; ``then`` is called with its attachments."""

    async def story() -> Any:
        plan_of_groups = plan(*groups, seconds=0.1)
        attachments = Attachments(plan_of_groups, Claims(plan_of_groups.ports), seconds=0.1)
        link = FakeLink({"bind_vfio": BOUND, "add_nodes": None, "remove_nodes": None} | answers)
        await attachments.begin(qmp, link)  # type: ignore[arg-type]
        return await then(attachments)

    return lambda _host: asyncio.run(story())


def attach_nics(attachments: Attachments) -> Any:
    return attachments.attach(wanted(NICS, Claims(plan().ports).spares))


def refuse(_command: str, _arguments: dict[str, Any]) -> HawseError:
    return RefusedError("device_add: vfio 0000:3b:00.0: failed to open /dev/vfio/7: Device or resource busy")


def forbidden(host: FakeSysfs) -> Any:
    """The node of group 7 belongs to root, and the runtime runs as another user."""
    host.function("0000:3b:00.0", group=7)
    group_7 = read_group(7, root=host.root)
    host.write("dev/vfio/7", "")
    os.chmod(f"{host.root}/dev/vfio/7", 0)
    os.seteuid(65534)
    try:
        return check_free(group_7, root=host.root)
    finally:
        os.seteuid(0)


def bundle(**parts: Any) -> Act:
    """A bundle: runc's example with these fields; objects are merged, other values are replaced."""

    def act(host: FakeSysfs) -> Any:
        spec: dict[str, Any] = example()
        for name, value in parts.items():
            spec[name] = {**spec[name], **value} if isinstance(value, dict) and name in spec else value
        os.mkdir(f"{host.root}/rootfs")
        write(host.root, spec)
        return plan_guest(load_bundle(host.root), container="c1")

    return act


def without_room(_host: FakeSysfs) -> Any:
    """A guest whose kernel has not assigned any of a function's BARs."""
    bars = (Bar(2, 8 * MIB, False, True, True),)
    group = HostGroup(7, (Function("0000:3b:00.0", 1, 1, 0x020000, "vfio-pci", bars),))
    steps = plug_steps([group], plan_ports([shape(group)]).slots, owner="c1")
    link = FakeLink({"bind_vfio": BOUND | {"bars": [0] * 6}})
    return asyncio.run(devices.attach(steps, FakeQmp(), link, seconds=0.1))  # type: ignore[arg-type]


def in_room(*, memory: int = 0, label: str = "") -> Act:
    """A container joins a pod whose VM has 1 GiB, of which 256 MiB are huge pages of others, and no SELinux label."""
    room = Room(spares=[], memory_mib=1024, hugepages_mib=256)
    if memory:
        return lambda _host: room.check_memory("linux.resources.memory.limit", memory, host_mib=65536)
    return lambda _host: room.warnings(label=label)[0]


def above(**limits: float) -> Act:
    """The cgroup of a Kubernetes pod with these limits."""
    files = {"memory": "memory.max", "tasks": "pids.max", "cpus": "cpu.max"}
    allowed = Allowed(**{
        name: Limit(f"/sys/fs/cgroup/kubepods.slice/kubepods-pod5.slice/{files[name]}", value)
        for name, value in limits.items()
    })  # fmt: skip
    needs = needs_of(1024, Limits(memory=512 * MIB), accel="tcg", cpus=2)
    return lambda _host: check_allowance(allowed, needs)[0]


def unsaid_pages(_host: FakeSysfs) -> Any:
    wanted = Wanted(mounted=frozenset({2048}), kubelets=True)
    return decide(wanted, role=CONTAINER, memory_mib=1024, host_mib=65536)


def bound(source: str) -> Act:
    """A mount of the host's view of its devices; returns the warning."""
    act = bundle(mounts=[{"destination": "/host", "type": "bind", "source": source, "options": ["bind"]}])
    return lambda host: next(text for level, text in act(host).notes if level == "warning")


def other_node(kind: str, major: int, minor: int, path: str, *, allow: tuple[str, ...] = ("*",)) -> Act:
    """A node that is not a VFIO node, allowed by a rule, on a host with sdb, an empty loop device and two others."""

    def act(host: FakeSysfs) -> Any:
        for numbers, name, size in (("8:16", "sdb", 2048), ("7:0", "loop0", 0)):
            host.write(f"sys/devices/virtual/block/{name}/size", f"{size}\n")
            host.link(f"sys/dev/block/{numbers}", f"../../devices/virtual/block/{name}")
        for numbers, where, driver in (
            ("188:0", "usb1/ttyUSB0", "ftdi_sio"),
            ("231:192", "0000:3b:00.0/infiniband_verbs/uverbs0", "mlx5_core"),
        ):
            host.write(f"sys/devices/{where}/dev", numbers)
            host.link(f"sys/devices/{where}/driver", f"/drivers/{driver}")
            host.link(f"sys/dev/char/{numbers}", f"../../devices/{where}")
        made = disk_host(allow, host.root)
        rules = [DeviceRule(allow=True, type=kind, major=major, minor=minor, access="rw")]
        return nodes.decide([Wish(f"linux.devices: {path}", path, kind, major, minor)], rules, made)

    return act


def whole_dev(host: FakeSysfs) -> str:
    paths = [("/dev/kvm", "c", 10, 232), ("/dev/sdb", "b", 8, 16), *((f"/dev/tty{n}", "c", 4, n) for n in range(64))]
    wishes = [Wish(path, path, kind, major, minor) for path, kind, major, minor in paths]
    decision = nodes.decide(wishes, [DeviceRule(allow=True, access="rwm")], disk_host(("*",), host.root), whole=True)
    return leave_out({"linux": {"devices": []}}, decision.left_out)


def unopened(_host: FakeSysfs) -> Any:
    def no_medium(*_: int, **__: bool) -> int:
        raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))

    disks = Disks(Claims(plan_ports([]).ports), seconds=1, open_device=no_medium)
    qmp, link = FakeQmp(), FakeLink({})
    return asyncio.run(disks.attach([DISK], owner="c1", qmp=qmp, link=link))  # type: ignore[arg-type]


def refused_field(path: str) -> Act:
    """A field that is in the table of fields that cannot be applied."""

    def act(_host: FakeSysfs) -> Any:
        value: Any = "asked for"
        for name in reversed(path.split(".")):
            value = {name.removesuffix("[]"): [value] if name.endswith("[]") else value}
        return review("config.json", value)

    return act


def limit(soft: int, hard: int, kind: str = "RLIMIT_MEMLOCK") -> dict[str, Any]:
    return {"type": kind, "soft": soft, "hard": hard}


def preserving(count: int, *descriptors: Descriptor) -> Act:
    """--preserve-fds with these open descriptors."""
    return lambda _host: preserve(count, look={each.number: each for each in descriptors}.get)


def narrow(host: FakeSysfs) -> Any:
    """An Intel IOMMU with three-level page tables."""
    host.write("sys/class/iommu/dmar0/intel-iommu/cap", "1c0000c40660462\n")
    return widths.warning(root=host.root)


def not_mapped(iova: int, number: int) -> Act:
    """The host refuses to map memory of a running guest, and QEMU prints an error."""

    def act(_host: FakeSysfs) -> Any:
        errors: list[VmError] = []
        line = (
            f"qemu-system-x86_64: vfio_dma_map(0x55d0, {iova:#x}, 0x1000, 0x7f00) = -{number} ({os.strerror(number)})"
        )
        Complaints(lambda _line: None, errors.append).feed(f"{line}\n".encode())
        raise errors[0]

    return act


LABEL = "system_u:system_r:container_kvm_t:s0:c1,c2"
PIPE = Descriptor(3, "pipe:[7]", stat.S_IFIFO, os.O_RDONLY, inode=(13, 7))
LISTENER = Descriptor(3, "socket:[7]", stat.S_IFSOCK, os.O_RDWR, stream=True, listening=True)
NAMESPACES = example()["linux"]["namespaces"]


def without(kind: str) -> Act:
    """A bundle without a namespace of this type."""
    return bundle(linux={"namespaces": [namespace for namespace in NAMESPACES if namespace["type"] != kind]})


SHARED = {"destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "rshared"]}
FIELD_SITUATIONS = {
    f"`{field.path}` is set": refused_field(field.path) for field in FIELDS if field.fate is Fate.REFUSED
}


def warned(**parts: Any) -> Act:
    """What a bundle with that in its specification is warned of."""

    def act(host: FakeSysfs) -> str:
        notes = bundle(**parts)(host).notes
        [text] = [text for level, text in notes if level == "warning"]
        return str(text)

    return act


def floppy(host: FakeSysfs) -> str:
    os.makedirs(f"{host.root}/proc")
    Path(f"{host.root}/proc/filesystems").write_text("nodev\tproc\n")
    mount = {"destination": "/x", "type": "floppyfs"}
    message = unknown_type("mount `none` to `x`: No such device", {"mounts": [mount]}, root=host.root)
    return VmError(message, hint=HINT).sentence()


def other_version(host: FakeSysfs) -> None:
    store = Store(f"{host.root}/state", "c1")
    store.make()
    lock = store.lock()
    Path(f"{store.path}/lock").write_text("2 9.0.0\n")
    try:
        check_version(store, "exec")
    finally:
        os.close(lock)


def other_image(host: FakeSysfs) -> None:
    os.makedirs(f"{host.root}/cache/images", mode=0o755)
    Path(f"{host.root}/cache/images/current-0123456789abcdef").touch()
    for directory in ("cache", "cache/images"):
        os.chmod(f"{host.root}/{directory}", 0o755)
    image.locate(cache=f"{host.root}/cache")


def kernel_view(host: FakeSysfs) -> None:
    os.symlink("/proc", f"{host.root}/data")
    open_sources([Share(name="mount1", source=f"{host.root}/data", is_dir=True, readonly=False)])


def overlaid(*options: str) -> Act:
    """A bundle with an overlay."""
    return bundle(mounts=[{"destination": "/x", "type": "overlay", "source": "overlay", "options": list(options)}])


def layers(*lowers: str) -> Act:
    """An overlay of these directories below the host's root is mounted."""

    def act(host: FakeSysfs) -> None:
        os.makedirs(f"{host.root}/data")
        overlay = Overlay(lowers=tuple(host.root + lower for lower in lowers))
        open_sources([Share(name="mount1", source="x", is_dir=True, readonly=True, overlay=overlay)])

    return act


def nested_config(host: FakeSysfs) -> object:
    os.makedirs(f"{host.root}/rootfs")
    host.write("config.json", '{"ociVersion": ' + "[" * 200 + "]" * 200 + "}")
    return load_bundle(host.root)


def kept_group(_host: FakeSysfs) -> None:
    ports = plan_ports([shape(EDU)]).ports
    claims = Claims(ports)
    plugs = plug_steps([EDU], place(shape(EDU), ports), owner="c1")
    claims.claim(plugs, owner="c1")
    claims.release(plugs, plugs, owner="c1")
    claims.claim(plugs, owner="c2")


def gone_overlay(host: FakeSysfs) -> None:
    """The sandbox's other container was deleted after this one had asked what there is."""
    os.makedirs(f"{host.root}/data")
    overlay = Overlay(lowers=("/data", "/b"))
    share = Share(name="mount1", source=overlay.name, is_dir=True, readonly=True, common=True, overlay=overlay)

    def act() -> str:
        enter_private_namespace()
        source = Source(os.open(f"{host.root}/data", os.O_PATH), Origin(device=overlay.key, path="/"), reused=True)
        try:
            ShareRoot(f"{host.root}/share").place("c2", [share], [source])
        except HawseError as error:
            return json.dumps(error.to_wire())
        return ""

    raise from_wire(json.loads(in_child(act)))


def bound_socket(kind: int, *forwarded: str) -> Act:
    """A container binds a socket of the host, or, with 0, a FIFO."""

    def act(host: FakeSysfs) -> str:
        os.makedirs(f"{host.root}/run")
        path = f"{host.root}/run/it"
        with socket.socket(socket.AF_UNIX, kind or socket.SOCK_STREAM) as made:
            if kind:
                made.bind(path)
            else:
                os.mkfifo(path)
            special = find_special(path)
            assert special is not None
            return obstacle("/config.json: mounts[0].source", special, [host.root + each for each in forwarded])

    return act


def rules(*entries: dict[str, Any]) -> Act:
    """A bundle with these device rules."""
    return bundle(linux={"resources": {"devices": list(entries)}})


MAPPED = {
    key: [{"containerID": 0, "hostID": 100000, "size": 65536}] for key in ("uidMappings", "gidMappings")
}  # fmt: skip


def user_map(ranges: list[tuple[int, int, int]], **process: Any) -> Act:
    """A bundle whose user namespace has these ranges."""
    ids = [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in ranges]
    namespaces = {"namespaces": [*NAMESPACES, {"type": "user"}]}
    return bundle(linux=namespaces | {"uidMappings": ids, "gidMappings": ids}, process=process)


def mapped(uids: list[tuple[int, int, int]]) -> Act:
    """A share with an ID mapping."""

    def act(host: FakeSysfs) -> None:
        source = f"{host.root}/data"
        os.makedirs(source, exist_ok=True)
        open_sources([Share(name="mount1", source=source, is_dir=True, readonly=False, uids=uids, gids=[(0, 1000, 1)])])

    return act


def unmappable(host: FakeSysfs) -> None:
    """Linux does not support ID-mapped mounts of ramfs."""
    os.mkdir(f"{host.root}/data")
    mounts.mount("none", f"{host.root}/data", "ramfs", 0)
    try:
        mapped([(0, 1000, 1)])(host)
    finally:
        mounts.unmount(f"{host.root}/data")


def open_cache(host: FakeSysfs) -> None:
    os.mkdir(f"{host.root}/cache")
    os.chmod(f"{host.root}/cache", 0o777)
    image.locate(cache=f"{host.root}/cache")


def others_cache(host: FakeSysfs) -> None:
    os.mkdir(f"{host.root}/cache")
    os.chmod(f"{host.root}/cache", 0o755)
    os.chown(f"{host.root}/cache", 1000, -1)
    image.locate(cache=f"{host.root}/cache")


def other_package(host: FakeSysfs) -> None:
    Path(f"{host.root}/crun_1.8.1_amd64.deb").write_text("another program")
    packages._verify(f"{host.root}/crun_1.8.1_amd64.deb", "0" * 64)


def unconfined(_host: FakeSysfs) -> None:
    plan_jail(Config(vm=Vm(confine="required", share="9p")), share="9p", filters=True, warn=print)


def with_tables(host: FakeSysfs) -> str:
    """Create a kernel's module directory with one module; returns its path."""
    directory = f"{host.root}/usr/lib/modules/6.1.0-56-amd64"
    os.makedirs(directory)
    Path(f"{directory}/modules.dep").write_text("kernel/net/bridge/br_netfilter.ko: \n")
    Path(f"{directory}/modules.builtin").write_text("")
    return directory


def not_in_kernel(host: FakeSysfs) -> None:
    release = os.path.basename(with_tables(host))
    add_autoload(host.root, f"{host.root}/out", release, [], ["br_netfilter", "zfs"])


def not_loaded(host: FakeSysfs) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "load_module", refuse)
        Modules(with_tables(host)).require(("br_netfilter",))


def without_user_ids(host: FakeSysfs) -> None:
    """The test supplies the kernel's answer: other processes have locked every id."""
    first = 1879048192
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "lockf", in_use_elsewhere)
        users.take(first, first + 15, name="c1", path=f"{host.root}/users")


def without_control(host: FakeSysfs) -> str:
    """A file exists at the path of the cgroup."""
    mount = Path(host.root, "sys/fs/cgroup")
    (mount / "c1").mkdir(parents=True)
    (mount / "hawse.control").write_text("")
    Path(host.root, "mountinfo").write_text(f"30 23 0:26 / {mount} rw - cgroup2 cgroup2 rw\n")
    control = ControlCgroup("/c1", host.root, mountinfo=f"{host.root}/mountinfo")
    [text] = control.enter([open_process(os.getpid())])
    return text


def in_use_elsewhere(*_arguments: object) -> None:
    raise BlockingIOError


def flooded(_host: FakeSysfs) -> None:
    async def flood() -> None:
        errors: list[VmError] = []
        qmp = Qmp(on_flood=errors.append)
        for _ in range(MOST_EVENTS + 1):
            qmp._count(None)
        raise errors[0]

    asyncio.run(flood())


DISK = DiskPlan(major=8, minor=16, name="sdb", writable=True)
OTHER_RULE = {"allow": True, "type": "c", "major": 188, "access": "rw"}
SITUATIONS: dict[str, Act] = {
    "A container requests the node of a group that does not exist": asks("/dev/vfio/42"),
    "It requests a device file that does not exist": asks("/dev/vfio/devices/vfio0"),
    "It requests a device without an IOMMU": asks("/dev/vfio/noiommu-0"),
    "The group does not exist": lambda host: read_group(7, root=host.root),
    "The group contains only bridges": bridge,
    "A bridge of the group is bound to another driver than the port driver": hotplug_bridge,
    "A member of the group is a mediated device": mediated,
    "The group's firmware requires memory at fixed addresses": beyond_binding(
        "reserved_regions", "0x00000000000e0000 0x00000000000effff direct\n"
    ),
    "The group has no IOMMU": beyond_binding("name", "vfio-noiommu\n"),
    "Its device is bound to a host driver": group("ixgbe", then=lambda g, _: check_viable(g)),
    "Its device has no driver": group("", then=lambda g, _: check_viable(g)),
    "Some of its devices are not bound to vfio-pci": group("vfio-pci", "ixgbe", "", then=lambda g, _: check_viable(g)),
    "Its node is missing": group("vfio-pci", then=lambda g, root: check_free(g, root=root)),
    "Opening its node is not permitted": forbidden,
    "Another process has its node open": open_elsewhere,
    "The BARs of its device are invalid": odd_bars,
    "The physical function of a virtual function is bound to vfio-pci, and the token is missing": virtual(""),
    "A token is set, and QEMU does not support tokens": virtual("14d63f20-8445-11ea-8900-1f9ce7d5650d"),
    "A function to bind shares its group with others": binding("3b:00.0"),
    "A function to bind is a bridge": binding("3a:00.0"),
    "A function to bind carries a route": binding(C, prepare=routing),
    "A function to bind has a mounted disk": binding(C, prepare=mounted),
    "A function to bind has virtual functions": binding(C, prepare=virtual_functions),
    "The group of a function to bind is in use": binding(C, prepare=in_use),
    "A function to bind is bound for another container": binding(C, prepare=lambda host: host.take(C, owner="web")),
    "The driver of a function to bind does not release it": binding(C, prepare=held),
    "A device file is requested, and the host has no /dev/iommu (a warning)": lambda host: by_files(
        host, "auto", iommu=False
    ),
    "A device file is requested, and QEMU needs a newer kernel for it (a warning)": lambda host: by_files(
        host, "auto", qemu="10.1.0"
    ),
    "A device file is requested, and QEMU supports only groups (a warning)": lambda host: by_files(host, "auto"),
    "All devices are to be passed by files, and QEMU supports only groups": lambda host: by_files(host, "iommufd"),
    "A device file is requested, and the guest kernel has none (a warning)": no_files,
    "Only a bus reset can reset it (a warning)": reset_by("bus"),
    "Nothing can reset it": reset_by("none"),
    "Nothing can reset it, and the configuration accepts that (a warning)": reset_by("none", accepted=True),
    "The host does not remap interrupts, and VFIO allows unsafe interrupts": interrupts("IO-APIC"),
    "VFIO allows unsafe interrupts, and the host does not show whether it remaps interrupts": interrupts(),
    "KVM is required and cannot be used": without_kvm,
    "QEMU is to be confined and cannot be": unconfined,
    "Every user id for QEMU is another sandbox's": without_user_ids,
    "The files are shared by 9p (a warning)": lambda _host: virtiofsd.MISSING,
    "The files are shared by 9p, by a QEMU before 9.2.1 (a warning)": lambda _host: virtiofsd.NO_SPECIAL_FILES.format(
        "7.2.0"
    ),
    "virtiofsd cannot keep its capabilities (a warning)": lambda _host: virtiofsd.FEW_RIGHTS,
    "A container may not be killed as late as it asks for (a warning)": lambda _host: oom_score.warning(-500, 0),
    "The monitor stays in its sandbox's share of CPU time (a warning)": without_control,
    "QEMU may not lock memory (a warning)": lambda _host: memlock.warning(8 << 20, 0, confined=True),
    "The host's limit of DMA mappings is low and cannot be raised (a warning)": lambda _host: dma.sentence(
        65535, dma.entries(1024), dma.parameter()
    ),
    "The host's IOMMU has few address bits (a warning)": narrow,
    "The host kernel's limit of DMA mappings is reached": not_mapped(0xFFFF0000, errno.ENOSPC),
    "QEMU may not lock the memory that a program maps": not_mapped(0xFFFF0000, errno.ENOMEM),
    "A program maps an IOVA that the host's IOMMU does not translate": not_mapped(0xFEE00000, errno.EINVAL),
    "QEMU lacks the device model": lambda _host: Capabilities("7.2.0", frozenset(), frozenset()).require("igb"),
    "A VM has fewer ports than there are groups": shapes(127),
    "More groups have I/O BARs than a VM has I/O windows": shapes(11, io=32),
    "32-bit BARs exceed the space below 4 GiB": shapes(4, memory=(256 * MIB,)),
    "A group has more functions than a bridge has slots": shapes(1, functions=32),
    "An emulated group has more functions than a slot": shapes(1, functions=9, emulated=True),
    "A group is attached, and no port is free": later([]),
    "A group is attached, and no free port is large enough": later(PORTS, prefetchable=(8192 * MIB,)),
    "A group of several functions is attached": later(PORTS, functions=2),
    "The name of a device to attach is invalid": lambda host: find_groups(["eth0"], {}, root=host.root),
    "A device to attach is not a function of the host": lambda host: find_groups(["3b:00.0"], {}, root=host.root),
    "A device to attach has no IOMMU group": groupless,
    "Two containers of one VM request the same group": claimed_twice,
    "A group is attached twice": running(FakeQmp(), {}, NICS, then=attach_nics),
    "A group to detach is not attached": running(FakeQmp(), {}, EDU, then=lambda a: a.detach(9, force=False)),
    "An annotation is unknown": annotation("hawse.vf_token", "x"),
    "An annotation is not allowed": annotation("hawse.devices", "0000:3b:00.0", ()),
    "The configuration does not allow a device": not_allowed,
    "An annotation's token is none": annotation("hawse.vf-token", "secret"),
    "An annotation is no switch": annotation("hawse.keep-addresses", "yes"),
    "An emulated group's key is not a number": emulated("five", "edu"),
    "An emulated group's model is unknown": emulated("5", "rtl8139"),
    "An emulated group is empty": emulated("5"),
    "QEMU refuses a device": running(FakeQmp(refuse=refuse), {}, EDU, then=attach_nics),
    "A device does not appear in the guest": in_guest(there=False),
    "A device cannot be bound to vfio-pci in the guest": in_guest(driver=""),
    "A device has no IOMMU group in the guest": in_guest(group=False),
    "A device's group has no node in the guest": in_guest(),
    "A device is for the guest kernel, which has no driver for it": left_to_the_guest,
    "A group of the host is several groups in the guest": running(
        FakeQmp(), {"bind_vfio": [BOUND, BOUND | {"group": 4}]}, NICS, then=attach_nics
    ),
    "The guest kernel cannot assign a device's BAR": without_room,
    "The guest's answer is invalid": running(FakeQmp(), {"bind_vfio": {"group": "../3"}}, EDU, then=attach_nics),
    "A program in the guest floods QEMU with events": flooded,
    "The guest does not release a device": running(
        FakeQmp(patience=10**9), {}, EDU, then=lambda a: a.detach(5, force=False)
    ),
    "A bundle has no network namespace": without("network"),
    "A bundle has no mount namespace": without("mount"),
    "A namespace type is unknown": bundle(linux={"namespaces": [*NAMESPACES, {"type": "galaxy"}]}),
    "A namespace type occurs twice": bundle(linux={"namespaces": [*NAMESPACES, {"type": "ipc"}]}),
    "A time namespace is requested": bundle(linux={"namespaces": [*NAMESPACES, {"type": "time"}]}),
    "A namespace of the host is to be joined": bundle(
        linux={"namespaces": [entry | ({"path": "/x"} if entry["type"] == "ipc" else {}) for entry in NAMESPACES]}
    ),
    "A user namespace has no mappings": bundle(linux={"namespaces": [*NAMESPACES, {"type": "user"}]}),
    "A user namespace does not map its root": user_map([(1, 100000, 65535)]),
    "Ranges of a user namespace overlap": user_map([(0, 100000, 10), (5, 200000, 10)]),
    "A user namespace has ids that do not exist": user_map([(0, 4294967290, 10)]),
    "A user namespace has too many ranges": user_map([(number, 100000 + number, 1) for number in range(341)]),
    "A user of the container is not mapped": user_map([(0, 100000, 10)], user={"uid": 1000, "gid": 0}),
    "A user namespace of the host cannot be read": bundle(
        linux={"namespaces": [*NAMESPACES, {"type": "user", "path": "/dev/null"}]}
    ),
    "A host name is set without a UTS namespace": without("uts"),
    "ID mappings are set without a user namespace": bundle(
        linux={"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]}
    ),
    "An adjustment of the OOM score does not exist": bundle(process={"oomScoreAdj": 5000}),
    "A resource limit is unknown": bundle(process={"rlimits": [limit(1, 1, "RLIMIT_FLY")]}),
    "A resource limit occurs twice": bundle(process={"rlimits": [limit(1, 1), limit(2, 2)]}),
    "A soft resource limit exceeds the hard limit": bundle(process={"rlimits": [limit(2, 1)]}),
    "The root's propagation is unknown": bundle(linux={"rootfsPropagation": "viral"}),
    "A mount is to appear on the host": bundle(mounts=[SHARED]),
    "A mount has no type": bundle(mounts=[{"destination": "/data", "source": "/tmp"}]),
    "A mount has an option of another runtime's": bundle(
        mounts=[{"destination": "/data", "source": "/tmp", "options": ["bind", "idmap=uids=0-1-10"]}]
    ),
    "A mount is of a VFIO device's node": bound("/dev/vfio/7"),
    "A mount is of all VFIO devices (a warning)": bound("/dev/vfio"),
    "A character device of the host is requested": other_node("c", 188, 0, "/dev/ttyUSB0"),
    "A character device of a host PCI function is requested": other_node("c", 231, 192, "/dev/infiniband/uverbs0"),
    "KVM is requested": other_node("c", 10, 232, "/dev/kvm"),
    "The device list of a privileged container is the host's whole /dev (a warning)": whole_dev,
    "A requested block device does not exist": other_node("b", 8, 32, "/dev/sdc"),
    "A block device is empty": other_node("b", 7, 0, "/dev/loop0"),
    "An administrator does not allow the block device": other_node("b", 8, 16, "/dev/sdb", allow=("8086:*",)),
    "A device rule has a number that no node has (a warning)": lambda _host: strangers([OTHER_RULE], [])[0],
    "A variable names devices that are not passed (a warning)": lambda _host: addresses.warnings(
        "process.env", ["PCIDEVICE_X=0000:3b:00.0,0000:3b:00.1"], {"0000:3b:00.0": "0000:02:00.0"}
    )[0],
    "A command-line argument names a device by its host address (a warning)": lambda _host: addresses.in_arguments(
        "process.args", ["0000:3b:00.0"], {"0000:3b:00.0": "0000:02:00.0"}
    )[0],
    "A VM has no free port for a block device": lambda _host: Room(spares=[]).check_disks([DISK], groups=0),
    "The host cannot open a block device": unopened,
    "The device type in a rule is unknown": bundle(
        linux={"resources": {"devices": [{"allow": True, "type": "p", "access": "r"}]}}
    ),
    "A rule has no access": bundle(linux={"resources": {"devices": [{"allow": True, "access": ""}]}}),
    "A token is given that nothing needs (a warning)": lambda _host: unused_token([], DeviceOptions(vf_token="x"))[0],
    "A mount is of the host's view of its kernel (a warning)": bound("/sys/kernel"),
    "A mount's source is on a file system of the host's kernel": kernel_view,
    "There is a label, and no SELinux on the host": lambda host: selinux.check("config.json", LABEL, root=host.root),
    "A container of a pod has another label than its machine (a warning)": in_room(label=LABEL),
    "A container of a pod may have more memory than its machine (a warning)": in_room(memory=2048 * MIB),
    "A mount of type `overlay` has an option that hawse does not know": overlaid("lowerdir=/a", "lowerdir+=/b"),
    "It has no lower directory": overlaid("upperdir=/u", "workdir=/w"),
    "It has one lower directory and no upper one": overlaid("lowerdir=/a"),
    "It has an upper directory and no working directory": overlaid("lowerdir=/a", "upperdir=/u"),
    "It has a layer without a name": overlaid("lowerdir=/a::/b"),
    "It has a layer that is not absolute": overlaid("lowerdir=a:/b"),
    "It has a layer of the host's kernel": overlaid("lowerdir=/proc:/b"),
    "A layer does not exist": layers("/none", "/data"),
    "There are more layers than the kernel takes": layers(*["/data"] * 100),
    "The container with the same overlay was deleted meanwhile": gone_overlay,
    "A container binds a socket of the host (a warning)": bound_socket(socket.SOCK_STREAM),
    "The socket is to be forwarded, and is not of streams (a warning)": bound_socket(socket.SOCK_DGRAM, "/run/*"),
    "A container binds a FIFO of the host (a warning)": bound_socket(0),
    "A container names sockets to be forwarded": lambda _host: "\n".join(
        patterns_of({"hawse.forward-sockets": "true"}, ())
    ),
    "A mount is to have a mapping without any": bundle(mounts=[SHARED | {"options": ["rbind", "idmap"]}]),
    "A mount that is to have a mapping is no bind": bundle(
        mounts=[{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}]
    ),
    "An ID-mapped mount is of a kernel file system": bundle(
        mounts=[SHARED | MAPPED | {"source": "/sys", "options": ["rbind"]}]
    ),
    "The kernel refuses an ID mapping": mapped([(0, 1000, 2), (1, 5000, 2)]),
    "The file system of a volume does not support ID-mapped mounts": unmappable,
    "A device rule has no access": rules({"allow": True, "type": "c", "major": 511, "minor": 5}),
    "A device rule has an unknown type": rules({"allow": True, "type": "u", "access": "rw"}),
    "A device rule has an invalid number": rules({"allow": True, "type": "c", "major": -2, "access": "rw"}),
    "A device rule denies a part of a wildcard": rules(
        {"allow": True, "type": "c", "major": 511, "access": "rw"},
        {"allow": False, "type": "c", "major": 511, "minor": 5, "access": "w"},
    ),
    "A device rule denies a default device of every container": rules(
        {"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 1, "access": "rw"}
    ),
    "A node is neither a device of the host nor an emulated group": lambda host: find_request(
        [Device(path="/dev/vfio-mine/7", type="c", major=511, minor=7)], emulated={5: EmulatedGroup(5, ("edu",))},
        root=host.root,
    ),
    "A container's memory limit exceeds the memory of its pod's VM": in_room(memory=2048 * MIB),
    "A cgroup of the host allows less memory than the VM needs": above(memory=64 * MIB),
    "A cgroup of the host allows less memory than the containers may use (a warning)": above(memory=700 * MIB),
    "A cgroup of the host allows fewer processes than a sandbox needs": above(tasks=10),
    "A cgroup of the host allows little CPU time (a warning)": above(cpus=0.05),
    "A list of CPUs is invalid": lambda _host: cpusets.check("linux.resources", "cpus", "3-1", last=7),
    "A list of CPUs has CPUs that the host lacks": lambda _host: cpusets.check("linux.resources", "cpus", "8", last=7),
    "A kubelet's container mounts huge pages, and their number is unknown": unsaid_pages,
    "A mount option requests an ID mapping": bundle(mounts=[SHARED | {"options": ["rbind", "idmap"]}]),
    "A cgroup file is not available to containers": bundle(linux={"resources": {"unified": {"io.max": "8:0 rbps=1"}}}),
    "A file descriptor to preserve is not open": preserving(2, PIPE),
    "A file descriptor to preserve is not a byte stream": preserving(1, LISTENER),
    "A file descriptor to preserve is the same file as stdin": preserving(1, replace(PIPE, number=0), PIPE),
    "More file descriptors are to be preserved than the link has streams": preserving(100),
    "A module of `image.extra_modules` is not in the kernel package": not_in_kernel,
    "A module of `vm.load_modules` is not in the image": lambda host: check_loaded(["zfs"], with_tables(host)),
    "The guest cannot load a module of `vm.load_modules`": not_loaded,
    "Other users can change the cache": open_cache,
    "The cache belongs to another user": others_cache,
    "A package is not the one in apt's lists": other_package,
    "A container is created, and the caller's service manager cannot be notified (a warning)": lambda _host: unheard(
        "/run/none/notify", problem(Notify(host="/run/none/notify", caller=True))
    ),
    "A container is ready, and the caller's service manager cannot be notified": lambda _host: report_ready(
        "/run/none/notify", "READY=1", pid=1
    ),
    "A mount is of what a hypervisor shares": bundle(mounts=[{"destination": "/x", "type": "virtiofs", "source": "a"}]),
    "A mount is of a disk's file system": bundle(mounts=[{"destination": "/x", "type": "ext4", "source": "/dev/sdb1"}]),
    "A mount shows the kernel (a warning)": warned(mounts=[{"destination": "/x", "type": "debugfs", "source": "none"}]),
    "A mount is of a file system that the guest's kernel has not": floppy,
    "A filter for system calls has nothing in it (a warning)": warned(linux={"seccomp": {}}),
    "A filter for system calls asks for a listener": bundle(linux={"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}),
    "An execution domain is unknown": bundle(linux={"personality": {}}),
    "A capability is unknown (a warning)": warned(process={"capabilities": {"bounding": ["CAP_FLY"]}}),
    "A container was created by another version of hawse": other_version,
    "There is no guest image of this version of hawse": other_image,
    "The guest image was removed while a sandbox was being started": lambda _host: hold("/images/20c5aa3eb55e"),
    "`config.json` is nested too deeply": nested_config,
    "The guest still has a group of a container that was deleted": kept_group,
    "containerd's configuration has a version that hawse does not know": lambda _host: edits.add_containerd(
        "version = 9", edits.Wanted("hawse", "/usr/bin/hawse")
    ),
    "containerd's configuration has version 1 or none": lambda _host: edits.add_containerd(
        "oom_score = 0", edits.Wanted("hawse", "/usr/bin/hawse")
    ),
    **FIELD_SITUATIONS,
}  # fmt: skip


def said(act: Act) -> str:
    """The error line of a situation, or its warning."""
    with tempfile.TemporaryDirectory() as root:
        try:
            answer = act(FakeSysfs(root))
        except HawseError as error:
            answer = error.sentence()
        assert isinstance(answer, str), "nothing went wrong"
        return answer.replace(root, "")


def page() -> str:
    """The whole page."""
    lines = [
        "# Errors and warnings",
        "",
        "Each line names what failed, on which device or in which field, and the remedy in brackets. When an error is",
        "printed, nothing was changed, or every change was undone. `tests/unit/test_errors.py` reproduces each one.",
    ]
    for situation, act in SITUATIONS.items():
        lines += ["", f"**{situation}.**", "", f"    hawse: {said(act)}"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_error_of_each_situation_is_on_the_page(situation: str) -> None:
    sections = dict(re.findall(r"\*\*(.*)\.\*\*\n\n    hawse: (.*)\n", PAGE.read_text()))
    assert said(SITUATIONS[situation]) == sections[situation]


def test_page_contains_exactly_these_situations() -> None:
    assert len(SITUATIONS) >= 25
    assert re.findall(r"\*\*(.*)\.\*\*", PAGE.read_text()) == list(SITUATIONS)


if __name__ == "__main__":
    sys.stdout.write(page())
