"""The agent's side of the link: dispatches the host's calls, each in a thread, so that none delays another.

A wait for hardware may take seconds. The calls are in ``docs/link.md``, and the host's side of them in
:mod:`hawse.monitor.agent.calls`.
"""

from __future__ import annotations

import os
import threading

from hawse.agent.calls.connections import ConnectionCalls
from hawse.agent.calls.containers import ContainerCalls
from hawse.agent.calls.devices import DeviceCalls
from hawse.agent.calls.guest import Guest
from hawse.agent.calls.machine import MachineCalls
from hawse.agent.calls.processes import ProcessCalls
from hawse.agent.calls.registry import Containers
from hawse.errors import HawseError, LinkError, VmError
from hawse.link import control
from hawse.link.agreed import PROTOCOL
from hawse.link.blocking import Port
from hawse.link.frames import CALL, CREDIT, DATA, EOF

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.json_text import Document

#: Calls with new streams: the first bytes of the process or connection may be in the very next frame.
OPENS_STREAMS = ("create", "exec", "connect", "accept")
#: Calls that are carried out before the next frame is read: the clone of a template gets an identity of its own first.
_IN_ORDER = ("wake",)


class Server:
    """Serves one link until it closes."""

    def __init__(self, port: Port, guest: Guest) -> None:
        self._port = port
        self._guest = guest
        containers = Containers(guest)
        connections = ConnectionCalls(guest)
        self._containers = ContainerCalls(guest, containers, connections)
        self.methods: dict[str, Callable[..., object]] = _methods(
            MachineCalls(guest, self._containers.settle),
            DeviceCalls(guest, containers),
            self._containers,
            ProcessCalls(guest, containers),
            connections,
        )

    def serve(self) -> None:
        """Announce the agent and obey until the host closes the link. Raises :class:`LinkError` for a wrong frame."""
        self._guest.send_event("hello", {"protocol": PROTOCOL, "kernel": os.uname().release})
        self._containers.prepare()
        for stream, kind, payload in self._port.frames():
            if kind == CALL:
                self._begin(*control.decode_call(payload))
            elif kind in (DATA, CREDIT, EOF):
                self._guest.streams.receive(stream, kind, payload)
            else:
                raise LinkError(f"link: the host sent a frame of type {kind}")

    def _begin(self, number: int, method: str, params: Document) -> None:
        if method in OPENS_STREAMS:
            self._guest.streams.open(params["process"], params.pop("descriptors"))
        if method in _IN_ORDER:
            self._answer(number, method, params)
        else:
            threading.Thread(target=self._answer, args=(number, method, params), daemon=True).start()

    def _answer(self, number: int, method: str, params: Document) -> None:
        try:
            if method not in self.methods:
                raise VmError(f"the agent has no method {method}")
            frame = control.encode_result(number, self.methods[method](**params))
        except HawseError as error:
            frame = control.encode_error(number, error)
        except Exception as error:  # a bug must reach the host as an answer, or its caller would wait for the deadline
            frame = control.encode_error(number, VmError(f"agent: {method}: {type(error).__name__}: {error}"))
        self._port.send(frame)


def _methods(
    machine: MachineCalls,
    devices: DeviceCalls,
    containers: ContainerCalls,
    processes: ProcessCalls,
    connections: ConnectionCalls,
) -> dict[str, Callable[..., object]]:
    """By the names of the link's calls."""
    return {
        "wake": machine.wake,
        "settle": machine.settle,
        "trace": machine.trace,
        "mount_share": machine.mount_share,
        "look_at_mounts": machine.look_at_mounts,
        "forget_mounts": machine.forget_mounts,
        "configure_network": machine.configure_network,
        "set_sysctls": machine.set_sysctls,
        "reserve_hugepages": machine.reserve_hugepages,
        "share_hugepages": machine.share_hugepages,
        "share_memory": machine.share_memory,
        "bind_vfio": devices.bind_vfio,
        "rescan_bridge": devices.rescan_bridge,
        "bind_disk": devices.bind_disk,
        "misc_numbers": devices.misc_numbers,
        "bind_native": devices.bind_native,
        "add_nodes": devices.add_nodes,
        "remove_nodes": devices.remove_nodes,
        "create": containers.create,
        "start": containers.start,
        "delete": containers.delete,
        "exec": processes.execute,
        "signal": processes.signal,
        "resize": processes.resize,
        "freeze": processes.freeze,
        "update": processes.update,
        "statistics": processes.statistics,
        "listing": processes.listing,
        "connect": connections.connect,
        "disconnect": connections.disconnect,
        "accept": connections.accept,
        "refuse": connections.refuse,
        "serve_names": connections.serve_names,
    }
