"""Check the requirements of every container: QEMU, acceleration, guest image, templates, state directory."""

from __future__ import annotations

import os
import time

from hawse.config import Config
from hawse.doctor import updates
from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.errors import HawseError, HostError, ImageError, UsageError
from hawse.json_text import parse
from hawse.planner.confinement import jail_tree
from hawse.planner.kernel_modules import check_loaded, find_image
from hawse.state import sockets
from hawse.state.store import CREATED, CREATING, PAUSED, RUNNING, Store
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind import targets
from hawse.vm import acceleration as accel
from hawse.vm import qemu_features, virtiofsd
from hawse.vm import templates as template

#: QEMU devices that every sandbox needs, and the bridge that a VM of a pod needs.
_DEVICES = (
    "intel-iommu", "pcie-root-port", "pcie-pci-bridge", "virtio-serial-pci", "virtserialport", "virtio-rng-pci",
)  # fmt: skip
_SHARE = "vhost-user-fs-pci"
#: Optional features of QEMU, and the effect if one is missing.
_EXTRAS = {
    "iommufd": "devices are passed by group nodes, not by device files",
    _SHARE: "files are shared by 9p",
}
#: Seconds that `create` may need from creating a sandbox's directory to the socket in it, and from there to listening.
_SOCKET_SECONDS, _LISTEN_SECONDS = 10.0, 1.0


def qemu(config: Config) -> Finding:
    """Check that QEMU runs and provides the devices that hawse needs."""
    try:
        can = qemu_features.ask(config.vm.qemu, directory=config.image.cache)
    except HawseError as error:
        return _missing("QEMU", error, "install a QEMU that runs, or set vm.qemu in the configuration")
    missing = [name for name in _DEVICES if name not in can.devices]
    if missing:
        found = f"{config.vm.qemu} {can.version} lacks {', '.join(missing)}"
        return Finding("QEMU", MISSING, found, "use a QEMU that is built with them", needed="containers")
    if "vfio-pci" not in can.devices:
        found = f"{config.vm.qemu} {can.version} has no vfio-pci"
        return Finding("QEMU", MISSING, found, "use a QEMU that is built with it", needed="devices")
    known = can.devices | can.objects
    extras = [f"has {name}" if name in known else f"no {name}: {effect}" for name, effect in _EXTRAS.items()]
    return Finding("QEMU", OK, "; ".join([f"{config.vm.qemu} {can.version}", *extras]), needed="containers")


def sharing(config: Config) -> Finding:
    """Check how the container's files are shared with a guest: by virtiofs or by 9p."""
    try:
        can = qemu_features.ask(config.vm.qemu, directory=config.image.cache)
        able, special = _SHARE in can.devices, can.makes_special_files
    except HawseError:
        able = special = True  # the check of QEMU reports this error
    lacks = "" if special else f"; QEMU {can.version} makes no FIFOs and UNIX sockets in shared directories"
    if config.vm.share == "9p":
        found = f'9p, because of vm.share = "9p": it is slower, and QEMU runs without a jail{lacks}'
        return Finding("shared files", WARNING, found, 'set vm.share = "auto"')
    try:
        program = virtiofsd.find(config.vm.virtiofsd)
    except HawseError as error:
        return _missing("shared files", error, "install the package virtiofsd")
    if program and not able:
        found = f"9p, which is slower: QEMU has no {_SHARE}{lacks}"
        return Finding("shared files", WARNING, found, "use a QEMU that is built with it")
    if program:
        return Finding("shared files", OK, f"virtiofs, with {program}")
    return Finding("shared files", WARNING, f"9p, which is slower{lacks}", "install the package virtiofsd")


def jail(config: Config) -> Finding:
    """Check that QEMU is confined."""
    if config.vm.confine == "off":
        return Finding("jail", WARNING, "disabled: QEMU runs as root", 'set vm.confine = "required"')
    shared = sharing(config)
    if shared.verdict == MISSING:
        return Finding("jail", WARNING, "not checked: see shared files", "fix shared files first")
    share = "9p" if config.vm.share == "9p" or shared.verdict != OK else "virtiofs"
    try:
        directory = jail_tree(config, share=share)
    except HawseError as error:
        if config.vm.confine == "required":
            return _missing("jail", error, "see docs/security.md")
        remedy = error.hint or "see docs/security.md"
        return Finding("jail", WARNING, f"QEMU is not confined: {error.message}", remedy)
    return Finding("jail", OK, f"QEMU has only the files of {directory}, and a user id from {config.vm.users}")


def guest_image(config: Config) -> Finding:
    """Check that the guest image is built from the present sources and contains package updates."""
    try:
        image = find_image(config)
        check_loaded(config.vm.load_modules, image.modules)
    except HawseError as error:
        return _missing("guest image", error, "build it with `hawse image build`")
    if reason := updates.outdated(config.image, image):
        found = f"{os.path.dirname(image.initrd)}: {reason}"
        return Finding("guest image", WARNING, found, updates.REMEDY, needed="containers")
    return Finding("guest image", OK, os.path.dirname(image.initrd), needed="containers")


def acceleration(config: Config) -> Finding:
    """Check whether guests run with KVM or with QEMU's TCG."""
    try:
        image = find_image(config)
        chosen = accel.choose(
            config.vm.accel,
            qemu=config.vm.qemu,
            kernel=image.kernel,
            initrd=image.initrd,
            directory=config.image.cache,
            seconds=config.vm.boot_seconds or accel.BOOT_SECONDS["kvm"],
        )
    except ImageError as error:
        return Finding("acceleration", WARNING, error.message, error.hint or "build it with `hawse image build`")
    except HawseError as error:
        return _missing("acceleration", error, "run on a host with working KVM")
    except OSError as error:
        found = f"it cannot be determined: {error.filename}: {error.strerror}"
        return Finding("acceleration", WARNING, found, "check vm.qemu and image.kernel in the configuration")
    if chosen.name == "kvm":
        return Finding("acceleration", OK, f"KVM ({chosen.reason})")
    return Finding(
        "acceleration", WARNING,
        "guests run with QEMU's TCG, which QEMU does not consider a security boundary and which is about twenty times "
        f"slower than KVM: {chosen.reason}",
        'run on a host with working KVM, and set vm.accel = "kvm" to refuse guests without KVM',
    )  # fmt: skip


def templates(config: Config) -> Finding:
    """Check that templates are enabled and safe, and that none is damaged."""
    if not config.template.enabled:
        return Finding("templates", WARNING, "disabled: every start is a cold start", "set template.enabled = true")
    directory = f"{config.image.cache}/templates"
    try:
        template.is_ours(config.image.cache)
    except HostError as error:
        remedy = f"remove {directory}: hawse creates it again, accessible only to its own user"
        return Finding("templates", WARNING, error.message, error.hint or remedy)
    try:
        kept = template.list_all(config.image.cache)
    except HostError as error:
        return Finding("templates", WARNING, error.message, error.hint)
    damaged = [name[:12] for name, state in kept if isinstance(state, HostError)]
    if damaged:
        return Finding(
            "templates", WARNING, f"damaged: {', '.join(damaged)}", f"`hawse template remove {' '.join(damaged)}`"
        )
    return Finding("templates", OK, f"{len(kept)}; the first start of a VM with another configuration creates one")


def state_directory(root: str) -> Finding:
    """Check that the directory of the sandboxes is writable or can be created."""
    existing = root
    while not os.path.exists(existing):
        existing = os.path.dirname(existing) or "/"
    if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
        return Finding("state", OK, root, needed="containers")
    found = f"{root} cannot be written"
    return Finding("state", MISSING, found, "run as root, or use another --root", needed="containers")


def left_over(root: str) -> tuple[Finding, list[str]]:
    """Find sandboxes that are not stopped but whose monitor has died. Returns the finding and their ids."""
    try:
        names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    except OSError as error:
        return Finding("sandboxes", WARNING, f"{root} cannot be read: {error.strerror}", "run as root"), []
    dead = [name for name in names if _has_dead_monitor(root, name)]
    if not dead:
        return Finding("sandboxes", OK, "none is left behind by a dead monitor"), []
    remedy = "`hawse doctor --repair`, or `hawse delete --force ID`"
    return Finding("sandboxes", WARNING, f"left behind by dead monitors: {', '.join(dead[:20])}", remedy), dead


def left_bound(state: str, *, root: str = "") -> tuple[Finding, list[bindings.Record]]:
    """Check the records of bound functions in the directory that belongs to ``state``.

    Returns the finding, and the records of functions that are bound for sandboxes that are dead or deleted.
    """
    records, damaged = bindings.read_all(bindings.directory_of(state))
    dead = set(left_over(state)[1])
    left = [r for r in records if r.owner and (r.owner in dead or not os.path.isdir(f"{state}/{r.owner}"))]
    absent = [r for r in records if r not in left and not targets.exists(r.address, root=root)]
    problems = [(error.message, error.hint) for error in damaged]
    if left:
        problems.append((f"bound for sandboxes that no longer exist: {_addresses(left)}", "`hawse doctor --repair`"))
    if by_user := [record for record in absent if not record.owner]:
        which = "the record" if len(by_user) == 1 else "the records"
        remedy = f"`hawse unbind {' '.join(record.address for record in by_user)}` deletes {which}"
        problems.append((f"on record, but no longer on this host: {_addresses(by_user)}", remedy))
    for record in (record for record in absent if record.owner):
        found = f"bound for the sandbox {record.owner}, but no longer on this host: {record.address}"
        problems.append((found, f"`hawse delete {record.owner}` deletes the record"))
    if problems:
        sentences, remedies = (list(dict.fromkeys(texts)) for texts in zip(*problems, strict=True))
        return Finding("bindings", WARNING, "; ".join(sentences), "; ".join(remedies)), left
    count = "1 function is" if len(records) == 1 else f"{len(records)} functions are"
    return Finding("bindings", OK, f"{count} bound by hawse"), []


def _addresses(records: list[bindings.Record]) -> str:
    return ", ".join(record.address for record in records)


def _missing(name: str, error: HawseError, remedy: str) -> Finding:
    return Finding(name, MISSING, error.message, error.hint or remedy, needed="containers")


def _has_dead_monitor(root: str, name: str) -> bool:
    try:
        store = Store(root, name)
    except UsageError:
        return False  # not a directory of a sandbox
    try:
        with open(f"{store.path}/state.json", "rb") as file:
            status = parse(file.read())["status"]
    except FileNotFoundError:
        # The first state is written after the sandbox's functions are bound. A monitor that was killed before that has
        # written none.
        return os.path.isdir(store.path) and not _is_being_created(store)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return status in (CREATING, CREATED, RUNNING, PAUSED) and not store.monitor_lives()


def _is_being_created(store: Store) -> bool:
    """Whether a sandbox without a state is just being created.

    `create` creates the directory and opens the socket in it. Then it starts the monitor, which inherits the socket and
    acquires the lock. So a monitor holds the lock or, before that, a process listens on the socket.
    """
    if store.monitor_lives():
        return True
    try:
        sockets.connect(store.path, "monitor.sock").close()
        return True
    except FileNotFoundError:
        timeout = _SOCKET_SECONDS
    except OSError:
        timeout = _LISTEN_SECONDS
    return os.path.isdir(store.path) and time.time() - os.stat(store.path).st_mtime < timeout
