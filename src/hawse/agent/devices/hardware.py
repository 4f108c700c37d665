"""From a function that the host is about to plug to a VFIO group that a container can open.

The order is fixed and each link is looked at in sysfs: device at its address → driver link is vfio-pci → iommu_group
link → /dev/vfio/<group> with the numbers of /sys/class/vfio. The error names the last link that was reached.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from contextlib import suppress

from hawse.agent.system import trace
from hawse.agent.system.pids import signal_each
from hawse.agent.system.uevents import Uevents
from hawse.errors import DeviceError
from hawse.vfio import sysfs

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER = "vfio-pci"
VIRTIO = "virtio-pci"
_BIND_SECONDS = 10.0
#: Whose wait for a function is the newest, by its address.
_newest: dict[str, object] = {}


def await_probe(device: str) -> None:
    """Wait until no probe of a function with a driver is in progress. ``device`` is its directory in sysfs.

    PCI hotplug probes a function that it adds, even with drivers_autoprobe=0 (drivers/pci/bus.c,
    pci_bus_add_device()). The driver link appears at the start of a probe, and what the driver makes (VFIO's device
    file, a network interface) comes later. A probe holds the device's lock (drivers/base/dd.c, __device_attach()). A
    request to bind the function to the driver that it has takes the lock as well, and is then refused with EBUSY
    (dd.c, device_driver_attach(), since Linux 5.14). Reading driver_override takes the lock in kernels before 6.12.y.
    """
    with open(f"{device}/driver_override") as file:
        file.read()
    with suppress(OSError):  # EBUSY, or the probe has failed and the link is gone: the caller looks at the link again
        write(f"{device}/driver/bind", os.path.basename(device))


def bind_vfio(
    uevents: Uevents,
    address: str,
    *,
    seconds: float,
    root: str = "",
    await_probe: Callable[[str], None] = await_probe,
) -> dict[str, object]:
    """Wait for the function, bind it to vfio-pci, wait for its group: {"group", "major", "minor"} of its node.

    Beside them "bars", the bytes of those of its BARs that have room; and, None on a kernel without them, "file", the
    number, major and minor of its device file, and "iommu", the numbers of /dev/iommu. The file comes with the probe,
    after the group's node (Linux drivers/vfio/vfio_main.c, __vfio_register_dev()), and the probe is over
    when the driver's file has been written to.
    """
    deadline = time.monotonic() + seconds
    with trace.span(f"{address} appears"):
        check = await_device(uevents, address, seconds=seconds, deadline=deadline, root=root)
    with trace.span(f"{address} bound to {DRIVER}"):
        soon = min(deadline, time.monotonic() + _BIND_SECONDS)
        _bind(uevents, address, DRIVER, check, deadline=soon, root=root, await_probe=await_probe)
    if not uevents.wait_until(lambda: sysfs.iommu_group(address, root=root) is not None, deadline=deadline):
        raise DeviceError(
            f"{address}: bound to {DRIVER} in the guest, but no iommu_group link appeared within {seconds:g} s",
            hint="the guest has no working IOMMU; its console log has lines of DMAR",
        )
    group = sysfs.iommu_group(address, root=root)
    assert group is not None
    numbers: tuple[int, int] | None = None

    def node_is_there() -> bool:
        nonlocal numbers
        numbers = sysfs.group_numbers(group, root=root)
        return numbers is not None and os.path.exists(f"{root}/dev/vfio/{group}")

    if not uevents.wait_until(node_is_there, deadline=deadline) or numbers is None:
        raise DeviceError(
            f"{address}: in the guest's group {group}, but /dev/vfio/{group} did not appear within {seconds:g} s",
            hint="the guest's console log tells whether VFIO refused the group",
        )
    file, iommu = sysfs.device_file(address, root=root), sysfs.iommu_numbers(root=root)
    return {
        "group": group,
        "major": numbers[0],
        "minor": numbers[1],
        "bars": sysfs.bar_sizes(address, root=root),
        "file": {"number": file[0], "major": file[1], "minor": file[2]} if file else None,
        "iommu": {"major": iommu[0], "minor": iommu[1]} if iommu else None,
    }


def rescan_bridge(address: str, *, root: str = "") -> None:
    """Remove the bridge that a function is behind, and rescan the bus that it is on.

    The windows of a bridge that was empty have 2 MiB each; now the kernel makes them for what is there, within those of
    the port that the bridge is in (Linux drivers/pci/probe.c, pci_rescan_bus()). Raises :class:`DeviceError`.
    """
    bridge = os.path.dirname(os.path.realpath(f"{root}/sys/bus/pci/devices/{address}"))
    buses = f"{os.path.dirname(bridge)}/pci_bus"
    try:
        [bus] = os.listdir(buses)
        write(f"{bridge}/remove", "1")
        write(f"{buses}/{bus}/rescan", "1")
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"{address}: its bridge {os.path.basename(bridge)} cannot be removed and rescanned: {error}"
        ) from None


def open_once(path: str) -> None:
    """Open a node and close it again. Raises OSError; EBUSY when a process has the group open."""
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def end_users(
    uevents: Uevents,
    group: int,
    *,
    force: bool,
    seconds: float,
    root: str = "",
    claim: Callable[[str], None] = open_once,
) -> None:
    """See that nobody has the group or a device file of it open: a function in use is not let go by vfio-pci, and its
    removal would wait in the kernel's only queue for hotplug (Linux drivers/vfio/vfio_main.c,
    vfio_unregister_group_dev()).

    With ``force`` its users are killed. Raises :class:`DeviceError` naming them.
    """
    path = f"{root}/dev/vfio/{group}"
    members = [sysfs.device_file(address, root=root) for address in sysfs.group_members(group, root=root)]
    files = [f"{root}/dev/vfio/devices/vfio{found[0]}" for found in members if found]

    def is_free() -> bool:
        try:
            claim(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise DeviceError(f"{path} in the guest: {os.strerror(error.errno or 0)}") from None
        else:
            # A device file that is open and bound to nothing yet keeps its device, and not its group.
            if not _users(files, root):
                return True
        if force:
            signal_each(lambda: [pid for pid, _ in _users([path, *files], root)], signal.SIGKILL)
        return False

    if is_free():
        return
    if not force:
        users = _users([path, *files], root)
        who = ", ".join(f"{words!r} (process {pid} of the guest)" for pid, words in users) or "a process"
        raise DeviceError(
            f"group {group} of the guest is in use: {who} has it open", hint="end it first, or detach with --force"
        )
    if not uevents.wait_until(is_free, deadline=time.monotonic() + seconds):
        raise DeviceError(f"group {group} of the guest is still in use {seconds:g} s after its users were killed")


def _users(paths: list[str], root: str) -> list[tuple[int, str]]:
    """Processes that have one of the nodes open."""
    nodes = {os.stat(path).st_rdev for path in paths if os.path.exists(path)}
    found: list[tuple[int, str]] = []
    if not nodes:
        return found
    for pid in filter(str.isdigit, os.listdir(f"{root}/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            descriptors = [f"{root}/proc/{pid}/fd/{fd}" for fd in os.listdir(f"{root}/proc/{pid}/fd")]
            if any(os.stat(fd).st_rdev in nodes and stat.S_ISCHR(os.stat(fd).st_mode) for fd in descriptors):
                # Not comm, which for a program of a busybox may be anything.
                with open(f"{root}/proc/{pid}/cmdline", "rb") as file:
                    words = file.read(200).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
                found.append((int(pid), words))
        except OSError:
            continue  # it has ended
    return found


def bind_virtio(uevents: Uevents, address: str, *, seconds: float, root: str = "") -> None:
    """Wait for a virtio function and give it to virtio's driver, whose own bus probes by itself."""
    deadline = time.monotonic() + seconds
    check = await_device(uevents, address, seconds=seconds, deadline=deadline, root=root)
    _bind(uevents, address, VIRTIO, check, deadline=min(deadline, time.monotonic() + _BIND_SECONDS), root=root)


def await_device(uevents: Uevents, address: str, *, seconds: float, deadline: float, root: str) -> Callable[[], None]:
    """Wait until the function is there. Raises :class:`DeviceError` at the deadline, and as what it returns does.

    That is to be called before the function is touched, and raises :class:`DeviceError` when somebody else has begun to
    wait for one at the same address: the host has given up on this wait, and what comes there now is another function.
    """
    device = f"{root}/sys/bus/pci/devices/{address}"
    mine = _newest[address] = object()

    def check() -> None:
        if _newest[address] is not mine:
            raise DeviceError(f"{address}: given up, since another function is to come to the same address")

    def is_there() -> bool:
        check()
        return os.path.exists(f"{device}/driver_override")

    if not uevents.wait_until(is_there, deadline=deadline):
        raise DeviceError(
            f"{address}: the device did not appear in the guest within {seconds:g} s",
            hint="the guest's console log tells whether its PCI hotplug saw the device and found room for its BARs",
        )
    return check


def _bind(
    uevents: Uevents,
    address: str,
    driver: str,
    check: Callable[[], None],
    *,
    deadline: float,
    root: str,
    await_probe: Callable[[str], None] = await_probe,
) -> None:
    """Have a driver probe the function, and see that it took it.

    Its directory and uevent come before the kernel lets any driver match it (pci_device_add(), then
    pci_bus_add_device(), in drivers/pci/probe.c and bus.c), and a probe that finds no driver is no error of the write.
    So the link alone counts, and the probe is repeated until it is there.
    """

    device = f"{root}/sys/bus/pci/devices/{address}"

    def is_bound() -> bool:
        check()
        if sysfs.driver(address, root=root) != driver:
            probe(address, root=root)
        # The link first, and then the end of the probe: one that begins between the two would not be waited for.
        if sysfs.driver(address, root=root) != driver:
            return False
        await_probe(device)
        return sysfs.driver(address, root=root) == driver

    check()
    try:
        write(f"{device}/driver_override", driver)
        if sysfs.driver(address, root=root) not in ("", driver):
            write(f"{device}/driver/unbind", address)
        bound, reason = uevents.wait_until(is_bound, deadline=deadline), f"its probe failed for {_BIND_SECONDS:g} s"
    except OSError as error:
        bound, reason = False, os.strerror(error.errno or 0)
    if not bound:
        raise DeviceError(
            f"{address}: appeared in the guest, but refuses to bind to {driver}: {reason}",
            hint="the guest's console log has the driver's reason",
        )


def probe(address: str, *, root: str) -> None:
    """Have the drivers that match the function probe it, which does not tell whether one took it.

    Its directory comes before the bus finds it by name, too (bus_add_device() in drivers/base/bus.c adds the link, then
    the entry of the list that is searched): ENODEV means not yet, or not any more.
    """
    try:
        write(f"{root}/sys/bus/pci/drivers_probe", address)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def write(path: str, text: str) -> None:
    """Write to a file of sysfs."""
    with open(path, "w") as file:
        file.write(text)
