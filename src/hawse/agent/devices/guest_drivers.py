"""Functions that guest drivers use: bind them, and find their interfaces and nodes in sysfs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hawse.agent.devices import hardware
from hawse.agent.system import trace
from hawse.agent.system.modules import Modules
from hawse.agent.system.uevents import Uevents
from hawse.errors import DeviceError
from hawse.linux import netlink
from hawse.vfio import sysfs

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Sequence

    from hawse.json_text import Document

    Answer = Document

#: Base classes whose disks or interfaces appear some time after the driver has bound (PCI Code and ID Assignment
#: Specification, section 1.1).
_STORAGE, _NETWORK = 0x01, 0x02
#: An NVMe driver scans for namespaces after it has bound. A controller may have no namespace.
_SCAN_SECONDS = 30.0
_HEADER_TYPE, _MULTIFUNCTION = 0x0E, 0x80  # PCI Local Bus 3.0, section 6.2.1
_MAX_NAME = 16  # IFNAMSIZ, including the terminating null byte


def bind_native(uevents: Uevents, address: str, *, drivers: str, seconds: float, root: str = "") -> Answer:
    """Wait for the function and bind it to the guest driver that supports it.

    Returns {"driver", "interfaces", "nodes"}; a node has "name" (its path below /dev), "kind" ("b" or "c"), "major" and
    "minor". ``drivers`` is a directory of modules with modules.dep and modules.alias. Raises :class:`DeviceError`.
    """
    deadline = time.monotonic() + seconds
    with trace.span(f"{address} appears"):
        check = hardware.await_device(uevents, address, seconds=seconds, deadline=deadline, root=root)
    device = f"{root}/sys/bus/pci/devices/{address}"
    with open(f"{device}/modalias") as file:
        alias = file.read(256).strip()
    names = matching(alias, f"{drivers}/modules.alias")
    with trace.span(f"{', '.join(names)} loaded for {address}"):
        modules = Modules(drivers)
        for name in names:
            modules.insert(name)
    with trace.span(f"{address} bound"):
        bound = uevents.wait_until(lambda: _probe(address, check, root), deadline=min(deadline, time.monotonic() + 10))
    if not bound:
        why = f"{', '.join(names)} did not bind to it" if names else "no module matches it"
        raise DeviceError(
            f"{address}: no driver of the guest kernel binds to the device: {why}",
            hint="pass it in the mode vfio, or use a kernel with its driver: image.kernel and image.modules",
        )
    kind = sysfs.read_number(address, "class", root=root) >> 16
    ready: Callable[[], bool] | None = None
    if kind == _NETWORK:
        ready = lambda: bool(interfaces(device))  # noqa: E731
    elif kind == _STORAGE:
        ready = lambda: any(node["kind"] == "b" for node in nodes(device))  # noqa: E731
    if ready is not None:
        uevents.wait_until(ready, deadline=min(deadline, time.monotonic() + _SCAN_SECONDS))
    if kind == _NETWORK:
        _rename(address, device)
    return {
        "driver": sysfs.driver(address, root=root),
        "interfaces": interfaces(device),
        "nodes": nodes(device),
    }


def move_interfaces(functions: Sequence[Answer], pid: int, *, root: str = "") -> None:
    """Move the network interfaces of a container's functions to the network namespace of its process ``pid``.

    ``functions`` are entries of the device map. When that namespace is destroyed, the kernel moves the interfaces back
    to the guest's (Linux net/core/dev.c, default_device_exit_net()). Raises :class:`DeviceError`.
    """
    for function in functions:
        for name in function.get("interfaces") or ():
            try:
                with open(f"{root}/sys/class/net/{name}/ifindex") as file:
                    netlink.talk([netlink.link(int(file.read()), pid=pid)])
            except OSError as error:
                address = function["guest"]["address"]
                raise DeviceError(
                    f"{address}: {name} cannot be moved to the network namespace of its container: {error.strerror}",
                    hint="remove the network namespace from config.json: the container then uses its pod's network",
                ) from None


def matching(alias: str, table: str) -> list[str]:
    """The modules whose patterns match a modalias, each once (modules.alias: "alias PATTERN MODULE", depmod(8))."""
    from fnmatch import fnmatchcase  # imported here, because most guests do not need it

    modules: list[str] = []
    try:
        with open(table) as file:
            for line in file:
                words = line.split()
                if len(words) == 3 and words[2] not in modules and fnmatchcase(alias, words[1]):
                    modules.append(words[2])
    except FileNotFoundError:
        return []
    return modules


def interfaces(device: str) -> list[str]:
    """The network interfaces of a function."""
    return sorted(os.listdir(f"{device}/net")) if os.path.isdir(f"{device}/net") else []


def interface_name(address: str, port: int, *, multifunction: bool = False) -> str:
    """A name from the function's address, as by systemd (systemd.net-naming-scheme(7)), for example "enp2s0".

    The kernel's names, eth0 and so on, are not used: engines give them to their own interfaces.
    """
    domain, bus, rest = address.split(":")
    slot, function = (int(number, 16) for number in rest.split("."))
    name = f"P{int(domain, 16)}" if int(domain, 16) else ""
    name += f"p{int(bus, 16)}s{slot}"
    return f"en{name}{f'f{function}' if function or multifunction else ''}{f'd{port}' if port else ''}"


def _rename(address: str, device: str) -> None:
    with open(f"{device}/config", "rb") as file:
        header = file.read(_HEADER_TYPE + 1)
    multifunction = bool(header[_HEADER_TYPE:] and header[_HEADER_TYPE] & _MULTIFUNCTION)
    for name in interfaces(device):
        with open(f"{device}/net/{name}/ifindex") as index, open(f"{device}/net/{name}/dev_port") as port:
            new_name = interface_name(address, int(port.read()), multifunction=multifunction)
            if len(new_name) < _MAX_NAME:
                netlink.talk([netlink.link(int(index.read()), name=new_name)])


def nodes(device: str) -> list[Document]:
    """The nodes below /dev that a driver has created for a function: a disk with its partitions, a DRM card."""
    device_nodes: list[Document] = []
    for directory, _, files in os.walk(device):
        if "dev" not in files or "uevent" not in files:
            continue
        with open(f"{directory}/uevent") as file:
            entries = dict(line.rstrip("\n").partition("=")[::2] for line in file)
        name, major, minor = entries.get("DEVNAME"), entries.get("MAJOR", ""), entries.get("MINOR", "")
        if name and major.isdigit() and minor.isdigit():
            block = os.path.basename(os.path.realpath(f"{directory}/subsystem")) == "block"
            kind = "b" if block else "c"
            device_nodes.append({"name": name, "kind": kind, "major": int(major), "minor": int(minor)})
    return sorted(device_nodes, key=lambda node: str(node["name"]))


def _probe(address: str, check: Callable[[], None], root: str) -> bool:
    """Let any driver probe the function, and wait until the probe has finished. Returns whether a driver is bound."""
    check()
    if not sysfs.driver(address, root=root):
        hardware.probe(address, root=root)
    if not sysfs.driver(address, root=root):
        return False
    hardware.await_probe(f"{root}/sys/bus/pci/devices/{address}")
    return bool(sysfs.driver(address, root=root))
