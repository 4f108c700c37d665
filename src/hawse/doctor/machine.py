"""Checks of what every container needs: QEMU, acceleration, the guest image, templates, a place for the state."""

from __future__ import annotations

import json
import os
import time

from hawse.config import Config
from hawse.container.confine import jail_tree
from hawse.container.modules import check_loaded, find_image
from hawse.doctor import updates
from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.errors import HawseError, HostError, ImageError, UsageError
from hawse.sandbox import sockets
from hawse.sandbox.state import CREATED, CREATING, PAUSED, RUNNING, Store
from hawse.vfio import bindings
from hawse.vm import accel, capabilities, template, virtiofsd

#: Without these no sandbox starts, or none of a pod's: its machine has bridges.
_DEVICES = (
    "intel-iommu", "pcie-root-port", "pcie-pci-bridge", "virtio-serial-pci", "virtserialport", "virtio-rng-pci",
)  # fmt: skip
_SHARE = "vhost-user-fs-pci"
#: What is good to have, and how it is without.
_EXTRAS = {"iommufd": "devices go by their groups' nodes, not by device files", _SHARE: "files go by 9p"}
#: Seconds in which a `create` that has made a sandbox's directory has the socket in it, and the socket a listener.
_BEGINNING, _LISTENING = 10.0, 1.0


def qemu(config: Config) -> Finding:
    """Is it there, and has it what is needed?"""
    try:
        can = capabilities.ask(config.vm.qemu, directory=config.image.cache)
    except HawseError as error:
        return _missing("QEMU", error, "install a QEMU that runs, or set vm.qemu in the configuration")
    lacking = [name for name in _DEVICES if name not in can.devices]
    if lacking:
        found = f"{config.vm.qemu} {can.version} lacks {', '.join(lacking)}"
        return Finding("QEMU", MISSING, found, "use a QEMU built with them", needed="containers")
    if "vfio-pci" not in can.devices:
        found = f"{config.vm.qemu} {can.version} has no vfio-pci: no device of the host can be passed"
        return Finding("QEMU", MISSING, found, "use a QEMU built with it", needed="devices")
    known = can.devices | can.objects
    extras = [f"{name} is there" if name in known else f"no {name}: {how}" for name, how in _EXTRAS.items()]
    return Finding("QEMU", OK, "; ".join([f"{config.vm.qemu} {can.version}", *extras]), needed="containers")


def sharing(config: Config) -> Finding:
    """By which way does a guest see the container's files?"""
    if config.vm.share == "9p":
        found = '9p, as vm.share = "9p" says; it is slower, and QEMU runs without a jail'
        return Finding("shared files", WARNING, found, 'set vm.share = "auto"')
    try:
        program = virtiofsd.find(config.vm.virtiofsd)
    except HawseError as error:
        return _missing("shared files", error, "install the package virtiofsd")
    try:
        able = _SHARE in capabilities.ask(config.vm.qemu, directory=config.image.cache).devices
    except HawseError:
        able = True  # what is wrong with QEMU is told of QEMU
    if program and not able:
        found = f"9p, which is slower: QEMU has no {_SHARE}"
        return Finding("shared files", WARNING, found, "use a QEMU built with it")
    if program:
        return Finding("shared files", OK, f"virtiofs, by {program}")
    return Finding("shared files", WARNING, "9p, which is slower", "install the package virtiofsd")


def jail(config: Config) -> Finding:
    """Is QEMU confined?"""
    if config.vm.confine == "off":
        return Finding("jail", WARNING, "turned off: QEMU runs as root", 'set vm.confine = "required"')
    shared = sharing(config)
    if shared.verdict == MISSING:
        return Finding("jail", WARNING, "not looked at: see shared files", "correct that first")
    share = "9p" if config.vm.share == "9p" or shared.verdict != OK else "virtiofs"
    try:
        directory = jail_tree(config, share=share)
    except HawseError as error:
        if config.vm.confine == "required":
            return _missing("jail", error, "see docs/security.md")
        remedy = error.hint or "see docs/security.md"
        return Finding("jail", WARNING, f"QEMU is not confined: {error.message}", remedy)
    return Finding("jail", OK, f"QEMU has the files of {directory}, and a user id from {config.vm.users}")


def guest_image(config: Config) -> Finding:
    """Is it built, of these sources, and with the updates of its packages?"""
    try:
        found = find_image(config)
        check_loaded(config.vm.load_modules, found.modules)
    except HawseError as error:
        return _missing("guest image", error, "build it with `hawse image build`")
    if reason := updates.outdated(config.image, found):
        words = f"{os.path.dirname(found.initrd)}: {reason}"
        return Finding("guest image", WARNING, words, updates.REMEDY, needed="containers")
    return Finding("guest image", OK, os.path.dirname(found.initrd), needed="containers")


def acceleration(config: Config) -> Finding:
    """What do guests run with?"""
    try:
        kernel = find_image(config).kernel
        chosen = accel.choose(config.vm.accel, qemu=config.vm.qemu, kernel=kernel, directory=config.image.cache)
    except ImageError as error:
        return Finding("acceleration", WARNING, error.message, error.hint or "build it with `hawse image build`")
    except HawseError as error:
        return _missing("acceleration", error, "run on a host whose KVM works")
    except OSError as error:
        found = f"it cannot be tried: {error.filename}: {error.strerror}"
        return Finding("acceleration", WARNING, found, "see to that file: check vm.qemu and image.kernel")
    if chosen.name == "kvm":
        return Finding("acceleration", OK, f"KVM ({chosen.reason})")
    return Finding(
        "acceleration", WARNING,
        "guests run under QEMU's TCG, which QEMU does not consider a security boundary, and some twenty times slower: "
        f"{chosen.reason}",
        'run on a host whose KVM works, and set vm.accel = "kvm", which refuses to start guests without it',
    )  # fmt: skip


def templates(config: Config) -> Finding:
    """Can they be used, and are they whole?"""
    if not config.template.enabled:
        return Finding("templates", WARNING, "turned off: every start is a cold one", "template.enabled = true")
    directory = f"{config.image.cache}/templates"
    try:
        template.is_ours(config.image.cache)
    except HostError as error:
        remedy = f"remove {directory}: it is made anew, for the user that hawse runs as alone"
        return Finding("templates", WARNING, error.message, error.hint or remedy)
    try:
        found = template.list_all(config.image.cache)
    except HostError as error:
        return Finding("templates", WARNING, error.message, error.hint)
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
    try:
        names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    except OSError as error:
        return Finding("sandboxes", WARNING, f"{root} cannot be read: {error.strerror}", "run as root"), []
    found = [name for name in names if _is_left(root, name)]
    if not found:
        return Finding("sandboxes", OK, "none was left by a monitor that died"), []
    remedy = "`hawse doctor --repair`, or `hawse delete --force ID`"
    return Finding("sandboxes", WARNING, f"left by monitors that died: {', '.join(found[:20])}", remedy), found


def left_bound(root: str) -> tuple[Finding, list[bindings.Record]]:
    """Functions that are bound for sandboxes which are no more, and their records."""
    directory = bindings.directory_of(root)
    records, damaged = bindings.read_all(directory)
    dead = set(left_over(root)[1])
    left = [r for r in records if r.owner and (r.owner in dead or not os.path.isdir(f"{root}/{r.owner}"))]
    if damaged:
        return Finding("bindings", WARNING, damaged[0].message, damaged[0].hint), left
    if left:
        names = ", ".join(record.address for record in left)
        found = f"bound for sandboxes that are gone: {names}"
        return Finding("bindings", WARNING, found, "`hawse doctor --repair`"), left
    count = "1 function is" if len(records) == 1 else f"{len(records)} functions are"
    return Finding("bindings", OK, f"{count} bound by hawse"), []


def _missing(name: str, error: HawseError, remedy: str) -> Finding:
    return Finding(name, MISSING, error.message, error.hint or remedy, needed="containers")


def _is_left(root: str, name: str) -> bool:
    try:
        store = Store(root, name)
    except UsageError:
        return False  # nothing of hawse's
    try:
        with open(f"{store.path}/state.json", "rb") as file:
            status = json.load(file)["status"]
    except FileNotFoundError:
        # The first is written when the sandbox's functions are bound: a monitor that was killed before has left none.
        return os.path.isdir(store.path) and not _is_made(store)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return status in (CREATING, CREATED, RUNNING, PAUSED) and not store.monitor_lives()


def _is_made(store: Store) -> bool:
    """Whether a sandbox without a state is just being made: a monitor has its lock or, before, somebody its socket.

    `create` makes the directory, then has the socket open until a monitor has inherited it, which takes the lock.
    """
    if store.monitor_lives():
        return True
    try:
        sockets.connect(store.path, "monitor.sock").close()
        return True
    except FileNotFoundError:
        patience = _BEGINNING
    except OSError:
        patience = _LISTENING
    return os.path.isdir(store.path) and time.time() - os.stat(store.path).st_mtime < patience
