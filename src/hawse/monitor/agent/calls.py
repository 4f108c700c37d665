"""The calls that the agent in the guest answers: one type for each, with its fields and the type of its answer.

The name of a call is that of its type in lower case with underscores. Its fields are the keyword arguments of the
agent's method for it (``Server.methods``, in :mod:`hawse.agent.calls`), which a test compares. The tables in
``docs/link.md`` are generated from these types and docstrings (``python -m tests.support.link_page``). Times are in
seconds unless their names say otherwise, addresses are PCI addresses in the guest, and paths are below the root of the
share.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar, get_args

import msgspec
from msgspec import Struct

from hawse.errors import VmError, printable
from hawse.json_text import Document
from hawse.monitor.agent.answers import (
    BoundFunction,
    Clock,
    DeviceNumbers,
    GuestProcess,
    NativeFunction,
    TracedStep,
)

#: The type of an answer: covariant, since answers are never modified.
Answer = TypeVar("Answer", covariant=True)


class Call(Struct, Generic[Answer], frozen=True, kw_only=True):
    """A call of the agent. ``Answer`` is the type of its answer, which :func:`read_answer` checks."""


class Wake(Call[Clock], frozen=True, kw_only=True):
    """Reseed the random number generator, set the clock, create a machine id. Later calls are read after it is done.

    ``seed`` is hexadecimal; ``time_ns`` is in nanoseconds since the epoch.
    """

    seed: str
    time_ns: int


class PrepareTemplate(Call[None], frozen=True, kw_only=True):
    """Load everything that a container may need, before the VM is saved as a template."""


class Trace(Call[list[TracedStep]], frozen=True, kw_only=True):
    """Report the agent's steps so far."""


class MountShare(Call[None], frozen=True, kw_only=True):
    """Wait for the share's device, and mount the shared directory.

    ``kind`` is "virtiofs" or "9p". ``protected`` are the host's values of the sysctls fs.protected_*, by their names
    without this prefix. ``modules`` is a directory of modules for the guest kernel, "" for none; those named by
    ``load`` are loaded now.
    """

    kind: str
    tag: str
    address: str
    seconds: float
    protected: dict[str, str]
    modules: str = ""
    load: list[str] = []


class Automount(Call[None], frozen=True, kw_only=True):
    """Open directories of the share, so that the guest kernel automounts the file systems mounted there on the host."""

    paths: list[str]


class Unmount(Call[None], frozen=True, kw_only=True):
    """Unmount the file systems at and below directories of the share that no container uses any more."""

    paths: list[str]


class BindVfio(Call[BoundFunction], frozen=True, kw_only=True):
    """Wait for a function and bind it to vfio-pci."""

    address: str
    seconds: float


class RescanBridge(Call[None], frozen=True, kw_only=True):
    """Remove the bridge above a function, and rescan, so that the kernel sizes its windows for its present
    functions."""

    address: str


class BindDisk(Call[DeviceNumbers], frozen=True, kw_only=True):
    """Wait for a virtio-blk function and its disk. The answer is the numbers of the disk's node."""

    address: str
    seconds: float


class MiscNumbers(Call[list[DeviceNumbers | None]], frozen=True, kw_only=True):
    """Return the numbers of misc devices of the guest kernel, in the order of ``names``; null for a missing device."""

    names: list[str]


class BindNative(Call[NativeFunction], frozen=True, kw_only=True):
    """Wait for a function and bind it to its driver in the guest, a module in the container's share."""

    address: str
    container: str
    seconds: float


class ConfigureNetwork(Call[None], frozen=True, kw_only=True):
    """Wait for each interface's device; give it its name, MTU, flags, settings, addresses, routes and neighbours."""

    interfaces: list[Document]
    seconds: float


class SetSysctls(Call[None], frozen=True, kw_only=True):
    """Set network sysctls, which apply to the whole guest."""

    values: dict[str, str]


class ServeNames(Call[None], frozen=True, kw_only=True):
    """Listen for name queries at these addresses of the guest's loopback; the event ``query`` announces each one."""

    servers: list[str]


class Connect(Call[None], frozen=True, kw_only=True):
    """Connect to a port of the guest's loopback.

    ``process`` is the number of the connection's streams. ``descriptors`` is ["both"]. The event ``exit`` follows when
    both directions have ended.
    """

    process: int
    port: int
    descriptors: list[str]


class Accept(Call[None], frozen=True, kw_only=True):
    """Forward a connection that ``dial`` or ``query`` announced, over the streams of the number ``process``.

    The event ``exit`` follows, as for ``connect``.
    """

    process: int
    connection: int
    descriptors: list[str]


class Refuse(Call[None], frozen=True, kw_only=True):
    """Close a connection that the event ``dial`` or ``query`` announced."""

    connection: int


class Disconnect(Call[None], frozen=True, kw_only=True):
    """Close a connection in the guest: the host has closed its side."""

    process: int


class ReserveHugepages(Call[None], frozen=True, kw_only=True):
    """Reserve ``count`` huge pages of ``kib`` KiB each, all or none. A negative ``count`` releases pages."""

    kib: int
    count: int


class ShareHugepages(Call[None], frozen=True, kw_only=True):
    """Mount a hugetlbfs for all containers that bind-mount it. ``uid`` and ``gid`` own its root."""

    name: str
    kib: int
    mode: int
    uid: int
    gid: int


class ShareMemory(Call[None], frozen=True, kw_only=True):
    """Mount a tmpfs of ``size`` bytes for all containers that bind-mount it."""

    name: str
    size: int


class SharedBind(Struct, frozen=True, kw_only=True):
    """A file below a directory that is shared for another mount: the mount's name, the file's path and inode number.

    The agent bind-mounts it at /run/hawse/binds/CONTAINER/NAME until crun has mounted it in the container.
    """

    name: str
    path: str
    inode: int


class GuestSocket(Struct, frozen=True, kw_only=True):
    """A socket in the guest that represents a socket of the host: the mount's name, and the socket's mode and owners.

    The agent listens at /run/hawse/sockets/CONTAINER/NAME.
    """

    name: str
    mode: int
    uid: int
    gid: int


class Create(Call[None], frozen=True, kw_only=True):
    """Create a container; its first process waits for ``start``.

    Device numbers in ``spec`` are the guest's. ``devices`` is the content of /dev/hawse/devices.json in the container.
    ``joins`` are containers, by the kind of namespace that is joined. ``notify``: the agent serves a socket for
    notifications, /run/hawse/notify/CONTAINER/notify.sock. ``descriptors`` are the directions of the descriptors from 3
    on.
    """

    container: str
    process: int
    descriptors: list[str]
    spec: Document
    devices: list[Document]
    joins: dict[str, str] = {}
    notify: bool = False
    binds: list[SharedBind] = []
    sockets: list[GuestSocket] = []


class LiveNode(Struct, frozen=True, kw_only=True):
    """A device node of a running container: the guest's numbers, and mode and owners in the container.

    ``remove_nodes`` identifies a node by its path and its numbers.
    """

    path: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


class AddNodes(Call[None], frozen=True, kw_only=True):
    """Create nodes in a running container, and allow them in its device cgroup, all or none."""

    container: str
    nodes: list[LiveNode]
    devices: list[Document]


class RemoveNodes(Call[None], frozen=True, kw_only=True):
    """Remove nodes from a running container if no process uses the group. ``force`` kills these processes.

    ``group`` is the group's number in the guest; null for a group that stays because another container uses it.
    """

    container: str
    nodes: list[LiveNode]
    group: int | None
    force: bool
    seconds: float
    devices: list[Document]


class Start(Call[None], frozen=True, kw_only=True):
    """Run `crun start`, and wait until the program is executed."""

    container: str


class Exec(Call[None], frozen=True, kw_only=True):
    """Run `crun exec`, with the number ``process``.

    ``spec`` is the specification's process object. ``descriptors`` are the directions of the descriptors from 3 on.
    """

    container: str
    process: int
    descriptors: list[str]
    spec: Document


class Signal(Call[None], frozen=True, kw_only=True):
    """Send a signal to one process, or with ``everyone`` to all processes of the container."""

    container: str
    process: int
    signal: int
    everyone: bool


class Freeze(Call[None], frozen=True, kw_only=True):
    """Freeze or thaw a container's processes (`crun pause`, `crun resume`)."""

    container: str
    frozen: bool


class Update(Call[None], frozen=True, kw_only=True):
    """Change a container's limits (`crun update`). ``resources`` is the specification's linux.resources."""

    container: str
    resources: Document


class Statistics(Call[dict[str, str]], frozen=True, kw_only=True):
    """Return the files of a container's cgroup, by name."""

    container: str


class Listing(Call[list[GuestProcess]], frozen=True, kw_only=True):
    """List a container's processes, at most a thousand."""

    container: str


class Resize(Call[None], frozen=True, kw_only=True):
    """Set the size of a process's terminal."""

    container: str
    process: int
    rows: int
    columns: int


class Delete(Call[None], frozen=True, kw_only=True):
    """Kill a container's processes, and remove the container."""

    container: str


#: Every call, by its name.
CALLS: dict[str, type[Call[Any]]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", call.__name__).lower(): call for call in Call.__subclasses__()
}
_NAMES = {call: name for name, call in CALLS.items()}
#: Calls that create a process or a connection, whose streams begin with the call.
WITH_STREAMS = tuple(name for name, call in CALLS.items() if "descriptors" in call.__struct_fields__)
#: Errors of :func:`msgspec.convert` for a value of the guest. json accepts half of a surrogate pair, which cannot be
#: encoded as text.
INVALID = (msgspec.ValidationError, UnicodeEncodeError)
_PATH = re.compile(r" - at `\$\.?(.*)`$")


def name_of(call: Call[Any]) -> str:
    """The name of a call."""
    return _NAMES[type(call)]


def answer_type(call: type[Call[Any]]) -> Any:
    """The type of a call's answer."""
    [base] = call.__orig_bases__  # type: ignore[attr-defined]
    [answer] = get_args(base)
    return answer


def parameters(call: Call[Any]) -> Document:
    """The call's fields for the link: JSON objects, lists, texts and numbers."""
    fields = msgspec.to_builtins(call)
    assert isinstance(fields, dict)
    return fields


def read_answer(call: Call[Answer], answer: object) -> Answer:
    """The guest's answer, checked. Raises :class:`VmError`: the guest is hostile, and an invalid answer is not used."""
    try:
        checked: Answer = msgspec.convert(answer, type=answer_type(type(call)))
    except INVALID as error:
        raise VmError(
            f"the guest's answer to {name_of(call)} is unusable: {explain(error)}",
            hint="do not trust the guest: delete the container",
        ) from None
    return checked


def explain(error: Exception) -> str:
    """The invalid field and the reason, from one of :data:`INVALID`."""
    if isinstance(error, UnicodeEncodeError):
        return "a name or a text is not Unicode"
    text = str(error)
    location = _PATH.search(text)
    reason = text[: location.start()] if location else text
    return printable(f"{location[1]}: {reason}" if location and location[1] else reason)[:200]
