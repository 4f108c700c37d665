"""The guest's network: interfaces with the names, addresses, routes and settings of those in the host's namespace.

Containers use the guest's network namespace by default: the guest exists only for their sandbox.
"""

from __future__ import annotations

import errno
import os
import re
import time

from hawse.agent.devices import hardware
from hawse.agent.system import trace
from hawse.agent.system.uevents import Uevents
from hawse.errors import VmError
from hawse.linux import netlink

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Sequence

    from hawse.json_text import Document

MODULES = ("virtio_net",)
#: Settings of an interface that are copied from the host, before the interface is up.
SETTINGS = ("ipv6/disable_ipv6", "ipv6/accept_ra", "ipv6/autoconf")
MAX_INTERFACES, MAX_ENTRIES, MAX_SYSCTLS = 64, 1024, 256
_NAME = re.compile(r"[^\s/:]{1,15}")
_SYSCTL = re.compile(r"net[./][A-Za-z0-9_./:@-]{1,200}")
_CARRIER_SECONDS = 5.0
_LOOPBACK = 1
_GEN_MODE_NONE = "1"


def raise_loopback() -> None:
    """Set ``lo`` up, as runc does in a container."""
    netlink.talk([netlink.link(_LOOPBACK, up=True)])


def check(interfaces: Sequence[Document]) -> None:
    """Raise :class:`VmError` for names, flags and settings that an interface cannot have, and for too many entries."""
    if len(interfaces) > MAX_INTERFACES:
        raise VmError(f"{len(interfaces)} network interfaces: a guest accepts {MAX_INTERFACES} at once")
    for each in interfaces:
        name = each["name"]
        if not _NAME.fullmatch(name) or name in (".", "..") or len(name.encode()) > 15:
            raise VmError(f"network interface {name[:40]!r}: not a valid name")
        for kind in ("addresses", "routes", "neighbours"):
            if len(each[kind]) > MAX_ENTRIES:
                raise VmError(f"network interface {name}: {len(each[kind])} {kind}, more than {MAX_ENTRIES}")
        if type(each["flags"]) is not int or each["flags"] & ~netlink.CARRIED_FLAGS:
            raise VmError(f"network interface {name}: flags that are not permitted: {each['flags']}")
        unknown = set(each["settings"]) - set(SETTINGS)
        if unknown or any(not re.fullmatch(r"-?[0-9]{1,9}", value) for value in each["settings"].values()):
            raise VmError(f"network interface {name}: settings that are not permitted: {each['settings']}")


def configure(uevents: Uevents, interfaces: Sequence[Document], *, seconds: float, root: str = "") -> None:
    """Wait for the interfaces' devices, and configure each like the host's. Raises DeviceError or VmError."""
    check(interfaces)
    indexes = []
    for each in interfaces:
        with trace.span(f"network device {each['address']} ready"):
            hardware.bind_virtio(uevents, each["address"], seconds=seconds, root=root)
            indexes.append(_await_interface(uevents, each["address"], seconds=seconds, root=root))
    with trace.span("interfaces configured"):
        # Use temporary names first: a name that the kernel chose, such as eth0, may be the final name of another one.
        for index in indexes:
            _do([netlink.link(index, name=f"hawse{index}")], f"interface {index}")
        for index, each in zip(indexes, interfaces, strict=True):
            name, settings = each["name"], each["settings"]
            _do([netlink.link(index, name=name, mtu=each["mtu"])], f"interface {name}: MTU {each['mtu']}")
            # Set flags before the interface is up: with ARP, the kernel would query neighbours that the network lacks.
            _do([netlink.link(index, flags=each["flags"])], f"interface {name}: flags {each['flags']:#x}")
            # All addresses are copied from the host, including link-local ones: the guest generates none.
            _set(f"ipv6/conf/{name}/addr_gen_mode", _GEN_MODE_NONE, root)
            for key in SETTINGS:
                if key in settings:
                    family, _, setting = key.partition("/")
                    _set(f"{family}/conf/{name}/{setting}", settings[key], root)
            _do([netlink.link(index, up=True)], f"interface {name}: up")
        for index, each in zip(indexes, interfaces, strict=True):
            _await_carrier(each["name"], root)
            for address in each["addresses"]:
                what = f"address {address['local']}/{address['prefix']}"
                _do([netlink.address(index, **address)], f"interface {each['name']}: {what}")
        routes = [(i, each["name"], r) for i, each in zip(indexes, interfaces, strict=True) for r in each["routes"]]
        # Routes without a gateway come first, because the gateways are reached by them.
        for index, name, route in sorted(routes, key=lambda entry: bool(entry[2].get("gateway"))):
            what = f"{route['to'] or 'default'}/{route['prefix']} via {route.get('gateway') or 'the link'}"
            _do([netlink.route(index, **route)], f"interface {name}: route to {what}", exists_ok=True)
        for index, each in zip(indexes, interfaces, strict=True):
            for neighbour in each["neighbours"]:
                _do([netlink.neighbour(index, **neighbour)], f"interface {each['name']}: {neighbour['to']}")


def set_sysctls(values: dict[str, str], *, root: str = "") -> None:
    """Set the specification's ``linux.sysctl`` for the network, for example "net.ipv4.ip_forward".

    The agent sets them because crun refuses: to crun, the guest's network namespace is that of a host. Raises
    :class:`VmError`.
    """
    if len(values) > MAX_SYSCTLS:
        raise VmError(f"linux.sysctl: {len(values)} network settings, more than {MAX_SYSCTLS}")
    for name, value in values.items():
        # Like runc: a name with a slash is separated by slashes, because names of interfaces may contain dots.
        path = name if "/" in name else name.replace(".", "/")
        if not _SYSCTL.fullmatch(name) or ".." in path.split("/"):
            raise VmError(f"linux.sysctl: {name[:80]!r} is not a network setting")
        try:
            with open(f"{root}/proc/sys/{path}", "w") as file:
                file.write(value)
        except OSError as error:
            raise VmError(f"linux.sysctl: {name}: the guest cannot set it: {error.strerror}") from None


def _await_interface(uevents: Uevents, address: str, *, seconds: float, root: str) -> int:
    """The index of the interface that the driver creates for the device. Raises :class:`VmError`."""
    index = 0

    def interface_exists() -> bool:
        nonlocal index
        device = f"{root}/sys/bus/pci/devices/{address}"
        try:
            for virtio in os.listdir(device):
                if re.fullmatch(r"virtio\d+", virtio):
                    for name in os.listdir(f"{device}/{virtio}/net"):
                        with open(f"{device}/{virtio}/net/{name}/ifindex") as file:
                            index = int(file.read())
        except FileNotFoundError:
            return False
        return index > 0

    if not uevents.wait_until(interface_exists, deadline=time.monotonic() + seconds):
        raise VmError(f"{address}: bound in the guest, but no network interface appeared within {seconds:g} s")
    return index


def _await_carrier(name: str, root: str) -> None:
    """Wait until the driver reports a carrier: packets are dropped before, and no event announces it."""
    deadline = time.monotonic() + _CARRIER_SECONDS
    while time.monotonic() < deadline:
        with open(f"{root}/sys/class/net/{name}/carrier") as file:
            if file.read().strip() == "1":
                return
        time.sleep(0.001)


def _do(messages: list[bytes], what: str, *, exists_ok: bool = False) -> None:
    """Send netlink requests. ``exists_ok``: ignore EEXIST. Raises :class:`VmError` naming ``what``."""
    try:
        netlink.talk(messages)
    except OSError as error:
        if not (exists_ok and error.errno == errno.EEXIST):
            raise VmError(f"the guest cannot configure {what}: {error.strerror}") from None


def _set(path: str, value: str, root: str) -> None:
    try:
        with open(f"{root}/proc/sys/net/{path}", "w") as file:
            file.write(value)
    except FileNotFoundError:
        return  # the user's own kernel, without IPv6
