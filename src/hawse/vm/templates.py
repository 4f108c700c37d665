"""Templates on disk: ``<cache>/templates/<digest>/`` with the files memory, state and manifest.json.

A template is a VM that has booted up to an idle agent. It is written under a hidden name and renamed when it is
complete and on the disk: a killed writer leaves no partial template. The digest covers everything that it depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace

from hawse.cache import results, trusted
from hawse.errors import HostError
from hawse.json_text import Document, parse
from hawse.linux.files import replace_file
from hawse.vm import ram_file as memory
from hawse.vm.arguments import Ends, VmShape, render

#: The version of the file format: increase it when the content of a template changes its meaning.
_FORMAT = 2
_MAX_STATE = 64 * memory.MIB
#: Maximum number of templates in a cache; the least recently used ones are removed. Each has 100 to 200 MB.
KEPT = 8


@dataclass(frozen=True)
class Template:
    """A usable template. ``used``: bytes of its memory that are not zero; ``created``: seconds since 1970."""

    digest: str
    directory: str
    used: int
    created: float
    shape: Document

    @property
    def memory(self) -> str:
        """The file of the RAM's non-zero pieces (:mod:`hawse.vm.ram_file`)."""
        return f"{self.directory}/memory"

    @property
    def state(self) -> str:
        """The file of the CPU and device state, as QEMU migrates it."""
        return f"{self.directory}/state"


def digest_of(shape: VmShape, *, version: str, layout: int = _FORMAT, root: str = "") -> str:
    """The template's name: a digest of the VM's QEMU, its files, its command line and, with KVM, the host CPU.

    ``version`` is QEMU's version; ``layout`` is the version of the template's file format; the CPU is read below
    ``root``. Raises OSError when one of the files is missing.
    """
    files = [results.file_key(path) for path in (shape.qemu, shape.kernel, shape.initrd)]
    line = render(replace(shape, qemu="", kernel="", initrd=""), Ends("", "", 0, 0, 0, 0))
    key = [layout, version, files, line, _cpu(root) if shape.accel == "kvm" else ""]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def find(cache: str, digest: str, *, read: bool = True) -> Template | None:
    """The template, or None if it does not exist. Raises :class:`HostError` with the reason if it must not be used.

    ``read``: compare the content with the digests, unless this was done since the last change.
    """
    directory = f"{cache}/templates/{digest}"
    try:
        if not is_ours(cache, digest):
            return None
        template = _read(directory)
        _check(template, read=read)
    except FileNotFoundError as error:
        raise HostError(f"the template {digest[:12]} is damaged: {error.filename} is missing") from None
    except OSError as error:
        raise HostError(f"the template {digest[:12]} cannot be read: {error.strerror}: {error.filename}") from None
    return template


def list_all(cache: str) -> list[tuple[str, Template | HostError]]:
    """Every template with its digest, or the error that makes it unusable; the content is not read.

    Raises :class:`HostError` where the directory of templates cannot be read, for example by an ordinary user.
    """
    templates: list[tuple[str, Template | HostError]] = []
    directory = f"{cache}/templates"
    try:
        names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    except OSError as error:
        raise HostError(f"{directory} cannot be read: {error.strerror}", hint="run as root") from None
    for name in names:
        if name.startswith("."):
            continue
        try:
            template = find(cache, name, read=False)
        except HostError as error:
            templates.append((name, error))
        else:
            if template is not None:
                templates.append((name, template))
    return templates


def remove(cache: str, digest: str) -> None:
    """Remove a template atomically. A process that is restoring it keeps its files open and is not disturbed."""
    hidden = f"{cache}/templates/.{digest}.old"
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(f"{cache}/templates/{digest}", hidden)
    shutil.rmtree(hidden, ignore_errors=True)


class Draft:
    """A template that is being written, by one process at a time; created by :func:`begin`."""

    def __init__(self, cache: str, digest: str, shape: VmShape, lock: int) -> None:
        self._cache = cache
        self._digest = digest
        self._shape = shape
        self._lock = lock
        self._directory = f"{cache}/templates/.{digest}.new"
        self._used = 0

    def fill(self, ram: int, state: bytes) -> None:
        """Save memory and state while the VM is stopped. Raises OSError."""
        shutil.rmtree(self._directory, ignore_errors=True)  # of a writer that was killed
        trusted.make_directories(self._directory, mode=0o700)
        target = os.open(f"{self._directory}/memory", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._used = memory.save(ram, target)
        finally:
            os.close(target)
        _keep(f"{self._directory}/state", state)

    def commit(self) -> None:
        """Publish the template. It computes digests and syncs files; the VM may run meanwhile. Raises OSError."""
        files = {}
        for name in ("memory", "state"):
            fd = os.open(f"{self._directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                files[name] = {"size": os.fstat(fd).st_size, "digest": memory.digest(fd)}
                os.fsync(fd)
            finally:
                os.close(fd)
        shape = asdict(self._shape)
        shape["machine_properties"] = sorted(self._shape.machine_properties)
        manifest = {"used": self._used, "created": time.time(), "shape": shape, "files": files}
        _keep(f"{self._directory}/manifest.json", json.dumps(manifest, indent=1).encode())
        _keep(f"{self._directory}/checked", json.dumps(_stamps(self._directory)).encode())
        final = f"{self._cache}/templates/{self._digest}"
        if os.path.exists(final):  # a damaged one
            remove(self._cache, self._digest)
        os.rename(self._directory, final)
        _prune(self._cache)

    def close(self) -> None:
        """Remove an uncommitted template and release the lock."""
        shutil.rmtree(self._directory, ignore_errors=True)
        os.close(self._lock)


def begin(cache: str, digest: str, shape: VmShape) -> Draft | None:
    """Begin to write a template; None when another process is writing it. Raises :class:`HostError` or OSError."""
    is_ours(cache)
    trusted.make(cache)
    directory = trusted.make(cache, "templates", mode=0o700)
    lock = os.open(f"{directory}/.{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return Draft(cache, digest, shape, lock)


def is_ours(cache: str, *digest: str) -> bool:
    """Whether the directory of templates exists, or with ``digest`` the directory of that template.

    Raises :class:`HostError` when another user may write to it. A template is the whole memory of a VM: a user who can
    write to it controls every container of a VM restored from it.
    """
    directory = os.path.join(cache, "templates", *digest)
    try:
        exists = trusted.check(cache, "templates", *digest)
    except HostError as error:
        raise HostError(f"templates are not used: {error.message}", hint=error.hint) from None
    if os.path.islink(directory):
        raise HostError(f"templates are not used: {directory} is not a directory", hint=f"remove {directory}")
    return exists


def _read(directory: str) -> Template:
    digest = os.path.basename(directory)
    try:
        with open(f"{directory}/manifest.json", "rb") as file:
            manifest = parse(file.read(memory.MIB))
        for name in ("memory", "state"):
            manifest["files"][name]["size"], manifest["files"][name]["digest"]
        return Template(digest, directory, manifest["used"], float(manifest["created"]), manifest["shape"])
    except (ValueError, KeyError, TypeError):
        raise HostError(
            f"the template {digest[:12]} is damaged: {directory}/manifest.json is not a valid manifest"
        ) from None


def _check(template: Template, *, read: bool) -> None:
    """Compare the files with the manifest; with ``read`` also their content, if they changed since the last check."""
    with open(f"{template.directory}/manifest.json", "rb") as file:
        expected = parse(file.read(memory.MIB))["files"]
    stamps = _stamps(template.directory)
    for name in ("memory", "state"):
        if stamps[name][0] != expected[name]["size"] or (name == "state" and stamps[name][0] > _MAX_STATE):
            raise HostError(
                f"the template {template.digest[:12]} is damaged: {template.directory}/{name} has {stamps[name][0]} "
                f"bytes, not {expected[name]['size']}"
            )
    if not read:
        return
    try:
        with open(f"{template.directory}/checked", "rb") as file:
            if parse(file.read(4096)) == stamps:
                return
    except (OSError, ValueError):
        pass
    for name in ("memory", "state"):
        fd = os.open(f"{template.directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if memory.digest(fd) != expected[name]["digest"]:
                raise HostError(
                    f"the template {template.digest[:12]} is damaged: {template.directory}/{name} was altered"
                )
        finally:
            os.close(fd)
    _keep(f"{template.directory}/checked", json.dumps(stamps).encode())


def _stamps(directory: str) -> dict[str, list[int]]:
    """Size, mtime and ctime in ns, and inode of each file: they change when the content changes."""
    stamps = {}
    for name in ("memory", "state"):
        status = os.stat(f"{directory}/{name}")
        stamps[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return stamps


def touch(template: Template) -> None:
    """Record that the template was used now; if this fails, it is removed earlier than others."""
    try:
        os.utime(f"{template.directory}/checked")
    except OSError:
        return


def _prune(cache: str) -> None:
    """Remove the least recently used templates beyond :data:`KEPT`."""
    directory = f"{cache}/templates"
    ages = []
    for name in os.listdir(directory):
        if not name.startswith("."):
            try:
                ages.append((os.stat(f"{directory}/{name}/checked").st_mtime_ns, name))
            except OSError:
                ages.append((0, name))
    for _, name in sorted(ages, reverse=True)[KEPT:]:
        remove(cache, name)


def _keep(path: str, data: bytes) -> None:
    replace_file(path, data, mode=0o600, durable=True)


def _cpu(root: str) -> str:
    """The host CPU's properties that a KVM guest sees: a state of another model or microcode may be unusable."""
    fields = ("vendor_id", "model name", "flags", "microcode", "stepping")
    with open(f"{root}/proc/cpuinfo") as file:
        lines = file.read().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(fields))
