"""Wait for a function that the host plugs, and bind it, so that a container can open its VFIO group.

The steps have a fixed order, and each is checked in sysfs: the device appears at its address, the driver link is
vfio-pci, the iommu_group link appears, and /dev/vfio/<group> appears with the numbers of /sys/class/vfio. The error
names the last step that succeeded.
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
#: The newest wait for a function, by the function's address.
_newest: dict[str, object] = {}


def await_probe(device: str) -> None:
    """Wait until no probe of a function with a driver is in progress. ``device`` is its directory in sysfs.

    PCI hotplug probes a function that it adds, even with drivers_autoprobe=0 (drivers/pci/bus.c,
    pci_bus_add_device()). The driver link appears at the start of a probe; objects that the driver creates (VFIO's
    device file, a network interface) appear later. A probe holds the device's lock (drivers/base/dd.c,
    __device_attach()). A request to bind the function to its present driver acquires the same lock, and then fails with
    EBUSY (dd.c, device_driver_attach(), since Linux 5.14). Reading driver_override acquires the lock in kernels before
    6.12.y.
    """
    with open(f"{device}/driver_override") as file:
        file.read()
    with suppress(OSError):  # EBUSY, or the probe has failed and the link is missing: the caller checks the link again
        write(f"{device}/driver/bind", os.path.basename(device))


def bind_vfio(
    uevents: Uevents,
    address: str,
    *,
    seconds: float,
    root: str = "",
    await_probe: Callable[[str], None] = await_probe,
) -> dict[str, object]:
    """Wait for the function, bind it to vfio-pci, and wait for its group.

    Returns "group", "major" and "minor" of the group's node; "bars", the sizes in bytes of the six BARs, 0 for one
    without address space; "file", the number, major and minor of the function's device file; and "iommu", the numbers
    of /dev/iommu. The last two are None on a kernel without device files. The probe creates the device file after the
    group's node (Linux drivers/vfio/vfio_main.c, __vfio_register_dev()); it has finished when :func:`await_probe`
    returns. Raises :class:`DeviceError`.
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
            hint="the guest has no working IOMMU: look for lines with DMAR in its console log",
        )
    group = sysfs.iommu_group(address, root=root)
    assert group is not None
    numbers: tuple[int, int] | None = None

    def node_exists() -> bool:
        nonlocal numbers
        numbers = sysfs.group_numbers(group, root=root)
        return numbers is not None and os.path.exists(f"{root}/dev/vfio/{group}")

    if not uevents.wait_until(node_exists, deadline=deadline) or numbers is None:
        raise DeviceError(
            f"{address}: in the guest's group {group}, but /dev/vfio/{group} did not appear within {seconds:g} s",
            hint="the guest's console log shows whether VFIO refused the group",
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
    """Remove the bridge above a function, and rescan the bridge's bus.

    The windows of a bridge without devices have 2 MiB each. The rescan sizes them for the present devices, within the
    windows of the bridge's port (Linux drivers/pci/probe.c, pci_rescan_bus()). Raises :class:`DeviceError`.
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
    """Open a node and close it again. Raises OSError; EBUSY if the group is open in a process."""
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def end_users(
    uevents: Uevents,
    group: int,
    *,
    force: bool,
    seconds: float,
    root: str = "",
    try_open: Callable[[str], None] = open_once,
) -> None:
    """Ensure that the group and its device files are not open in any process. With ``force``, kill the processes.

    vfio-pci does not release a function that is in use: its removal would block the kernel's only hotplug queue (Linux
    drivers/vfio/vfio_main.c, vfio_unregister_group_dev()). ``seconds`` is the time for killed processes to end.

    Raises :class:`DeviceError` naming the processes.
    """
    path = f"{root}/dev/vfio/{group}"
    numbers = [sysfs.device_file(address, root=root) for address in sysfs.group_members(group, root=root)]
    files = [f"{root}/dev/vfio/devices/vfio{file[0]}" for file in numbers if file]

    def is_free() -> bool:
        try:
            try_open(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise DeviceError(f"{path} in the guest: {os.strerror(error.errno or 0)}") from None
        else:
            # An open device file that is not bound to an iommufd yet reserves its device, but not its group.
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
            f"group {group} of the guest is in use: {who} has it open",
            hint="end that process first, or detach with --force",
        )
    if not uevents.wait_until(is_free, deadline=time.monotonic() + seconds):
        raise DeviceError(f"group {group} of the guest is still in use {seconds:g} s after its users were killed")


def _users(paths: list[str], root: str) -> list[tuple[int, str]]:
    """Pid and command line of each process that opened one of the nodes."""
    nodes = {os.stat(path).st_rdev for path in paths if os.path.exists(path)}
    users: list[tuple[int, str]] = []
    if not nodes:
        return users
    for pid in filter(str.isdigit, os.listdir(f"{root}/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            descriptors = [f"{root}/proc/{pid}/fd/{fd}" for fd in os.listdir(f"{root}/proc/{pid}/fd")]
            if any(os.stat(fd).st_rdev in nodes and stat.S_ISCHR(os.stat(fd).st_mode) for fd in descriptors):
                # comm is not used: for a busybox applet it may be any name.
                with open(f"{root}/proc/{pid}/cmdline", "rb") as file:
                    words = file.read(200).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
                users.append((int(pid), words))
        except OSError:
            continue  # the process has ended
    return users


def bind_virtio(uevents: Uevents, address: str, *, seconds: float, root: str = "") -> None:
    """Wait for a virtio function and bind it to virtio's PCI driver. Drivers on the virtio bus bind automatically."""
    deadline = time.monotonic() + seconds
    check = await_device(uevents, address, seconds=seconds, deadline=deadline, root=root)
    _bind(uevents, address, VIRTIO, check, deadline=min(deadline, time.monotonic() + _BIND_SECONDS), root=root)


def await_device(uevents: Uevents, address: str, *, seconds: float, deadline: float, root: str) -> Callable[[], None]:
    """Wait until the function appears. Returns a check, to be called before each change of the function.

    The check raises :class:`DeviceError` if a newer wait for the same address has begun: then the host has abandoned
    this wait, and the next function at the address is another one. This also raises :class:`DeviceError`, then and at
    the deadline.
    """
    device = f"{root}/sys/bus/pci/devices/{address}"
    this_wait = _newest[address] = object()

    def check() -> None:
        if _newest[address] is not this_wait:
            raise DeviceError(f"{address}: the wait was abandoned: another function will appear at the same address")

    def exists() -> bool:
        check()
        return os.path.exists(f"{device}/driver_override")

    if not uevents.wait_until(exists, deadline=deadline):
        raise DeviceError(
            f"{address}: the device did not appear in the guest within {seconds:g} s",
            hint="the guest's console log shows whether PCI hotplug found the device and address space for its BARs",
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
    """Let a driver probe the function, and check that it has bound to it.

    The function's directory and uevent appear before the kernel allows a driver to match it (pci_device_add(), then
    pci_bus_add_device(), in drivers/pci/probe.c and bus.c). The write of a probe that finds no driver does not fail. So
    the probe is repeated until the driver link appears. Raises :class:`DeviceError`.
    """

    device = f"{root}/sys/bus/pci/devices/{address}"

    def is_bound() -> bool:
        check()
        if sysfs.driver(address, root=root) != driver:
            probe(address, root=root)
        # Check the link before waiting for the probe: a probe that begins later would not be waited for.
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
            f"{address}: appeared in the guest, but does not bind to {driver}: {reason}",
            hint="the guest's console log shows the driver's reason",
        )


def probe(address: str, *, root: str) -> None:
    """Let the drivers that match the function probe it. The result does not show whether one has bound.

    The function's directory appears before the bus finds the function by its name (bus_add_device() in
    drivers/base/bus.c adds the link, then the entry of the list that is searched). So ENODEV, which is ignored, means
    that the function is not yet or no longer on the bus. Raises OSError for other errors.
    """
    try:
        write(f"{root}/sys/bus/pci/drivers_probe", address)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def write(path: str, text: str) -> None:
    """Write to a sysfs file."""
    with open(path, "w") as file:
        file.write(text)
