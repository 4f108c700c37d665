"""Checks of what every container needs: QEMU, acceleration, the guest image, templates, a place for the state."""

from __future__ import annotations

import json
import os

from hawse.config import Config
from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.errors import HawseError, HostError
from hawse.sandbox.state import CREATED, CREATING, RUNNING, Store
from hawse.vfio import bindings
from hawse.vm import accel, capabilities, image, template, virtiofsd

#: Without these no sandbox starts.
_DEVICES = ("intel-iommu", "pcie-root-port", "virtio-serial-pci", "virtio-rng-pci")


def qemu(config: Config) -> Finding:
    """Is it there, and has it what is needed?"""
    try:
        can = capabilities.ask(config.vm.qemu, directory=config.image.cache)
    except HawseError as error:
        return _missing("QEMU", error)
    lacking = [name for name in _DEVICES if name not in can.devices]
    if lacking:
        found = f"{config.vm.qemu} {can.version} lacks {', '.join(lacking)}"
        return Finding("QEMU", MISSING, found, "use a QEMU built with them", needed="containers")
    if "vfio-pci" not in can.devices:
        return Finding("QEMU", WARNING, f"{config.vm.qemu} {can.version} has no vfio-pci", "use one built with it")
    return Finding("QEMU", OK, f"{config.vm.qemu} {can.version}", needed="containers")


def sharing(config: Config) -> Finding:
    """By which way does a guest see the container's files?"""
    try:
        program = virtiofsd.find(config.vm.virtiofsd)
    except HawseError as error:
        return _missing("shared files", error)
    if program:
        return Finding("shared files", OK, f"virtiofs, by {program}")
    return Finding("shared files", WARNING, "9p, which is slower", "install the package virtiofsd")


def guest_image(config: Config) -> Finding:
    """Is it built, and of these sources?"""
    try:
        found = image.locate(cache=config.image.cache, kernel=config.image.kernel, modules=config.image.modules)
    except HawseError as error:
        return _missing("guest image", error)
    return Finding("guest image", OK, os.path.dirname(found.initrd), needed="containers")


def acceleration(config: Config) -> Finding:
    """What do guests run with?"""
    try:
        kernel = image.locate(cache=config.image.cache, kernel=config.image.kernel, modules=config.image.modules).kernel
        found = accel.choose(config.vm.accel, qemu=config.vm.qemu, kernel=kernel, directory=config.image.cache)
    except HawseError as error:
        return Finding("acceleration", WARNING, error.message, error.hint)
    except OSError as error:
        return Finding("acceleration", WARNING, f"it cannot be tried: {error.filename}: {error.strerror}")
    if found.name == "kvm":
        return Finding("acceleration", OK, f"KVM ({found.reason})")
    return Finding(
        "acceleration", WARNING, f"none, guests are some twenty times slower: {found.reason}",
        "run on a machine whose KVM works",
    )  # fmt: skip


def templates(config: Config) -> Finding:
    """Can they be used, and are they whole?"""
    if not config.template.enabled:
        return Finding("templates", WARNING, "turned off: every start is a cold one", "template.enabled = true")
    try:
        template.is_ours(f"{config.image.cache}/templates")
    except HostError as error:
        return Finding("templates", WARNING, error.message, error.hint)
    found = template.list_all(config.image.cache)
    damaged = [name[:12] for name, made in found if isinstance(made, HostError)]
    if damaged:
        return Finding(
            "templates", WARNING, f"damaged: {', '.join(damaged)}", f"`hawse template remove {' '.join(damaged)}`"
        )
    return Finding("templates", OK, f"{len(found)}; a machine of another shape leaves one at its first start")


def state_directory(root: str) -> Finding:
    """Can sandboxes be kept there?"""
    there = root
    while not os.path.exists(there):
        there = os.path.dirname(there) or "/"
    if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
        return Finding("state", OK, root, needed="containers")
    found = f"{root} cannot be written"
    return Finding("state", MISSING, found, "run as root, or give another --root", needed="containers")


def left_over(root: str) -> tuple[Finding, list[str]]:
    """Sandboxes whose monitor is gone though they were not stopped, and the ids of them."""
    found = []
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        try:
            with open(f"{Store(root, name).path}/state.json", "rb") as file:
                status = json.load(file)["status"]
        except (OSError, ValueError, KeyError, TypeError, HawseError):
            continue
        if status in (CREATING, CREATED, RUNNING) and not Store(root, name).monitor_lives():
            found.append(name)
    if not found:
        return Finding("sandboxes", OK, "none was left by a monitor that died"), []
    remedy = "`hawse doctor --repair`, or `hawse delete --force ID`"
    return Finding("sandboxes", WARNING, f"left by monitors that died: {', '.join(found[:20])}", remedy), found


def left_bound(root: str) -> tuple[Finding, list[bindings.Record]]:
    """Functions that are bound for sandboxes which are no more, and their records."""
    directory = bindings.directory_of(root)
    records, damaged = bindings.read_all(directory)
    left = [record for record in records if record.owner and not os.path.isdir(f"{root}/{record.owner}")]
    if damaged:
        return Finding("bindings", WARNING, damaged[0].message, damaged[0].hint), left
    if left:
        names = ", ".join(record.address for record in left)
        remedy = "`hawse doctor --repair`, or `hawse unbind ADDRESS`"
        return Finding("bindings", WARNING, f"bound for sandboxes that are gone: {names}", remedy), left
    return Finding("bindings", OK, f"{len(records)} functions are bound by hawse"), []


def _missing(name: str, error: HawseError) -> Finding:
    return Finding(name, MISSING, error.message, error.hint, needed="containers")
