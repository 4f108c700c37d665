"""The agent's side of the link: runs each call of the host in its own thread, so that no call delays another.

For example, a wait for hardware may take seconds. ``docs/link.md`` describes the calls;
:mod:`hawse.monitor.agent.calls` is the host's side of them.
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
from hawse.link import messages
from hawse.link.agreed import PROTOCOL
from hawse.link.blocking import Port
from hawse.link.frames import CALL, CREDIT, DATA, EOF

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.json_text import Document

#: Calls that open streams: the next frame may already contain bytes of the process or connection.
OPENS_STREAMS = ("create", "exec", "connect", "accept")
#: Calls that finish before the next frame is read: a clone of a template gets its own identity before other calls.
_IN_ORDER = ("wake",)


class Server:
    """Serves one link until it is closed."""

    def __init__(self, port: Port, guest: Guest) -> None:
        self._port = port
        self._guest = guest
        containers = Containers(guest)
        connections = ConnectionCalls(guest)
        self._containers = ContainerCalls(guest, containers, connections)
        self.methods: dict[str, Callable[..., object]] = _methods(
            MachineCalls(guest, self._containers.prepare_template),
            DeviceCalls(guest, containers),
            self._containers,
            ProcessCalls(guest, containers),
            connections,
        )

    def serve(self) -> None:
        """Send the event hello, then serve calls until the host closes the link.

        Raises :class:`LinkError` for an invalid frame.
        """
        self._guest.send_event("hello", {"protocol": PROTOCOL, "kernel": os.uname().release})
        self._containers.prepare()
        for stream, kind, payload in self._port.frames():
            if kind == CALL:
                self._begin(*messages.decode_call(payload))
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
            frame = messages.encode_result(number, self.methods[method](**params))
        except HawseError as error:
            frame = messages.encode_error(number, error)
        except Exception as error:  # report a bug to the host, whose caller would otherwise wait until its deadline
            frame = messages.encode_error(number, VmError(f"agent: {method}: {type(error).__name__}: {error}"))
        self._port.send(frame)


def _methods(
    machine: MachineCalls,
    devices: DeviceCalls,
    containers: ContainerCalls,
    processes: ProcessCalls,
    connections: ConnectionCalls,
) -> dict[str, Callable[..., object]]:
    """The functions that carry out the calls, by the names of the calls."""
    return {
        "wake": machine.wake,
        "prepare_template": machine.prepare_template,
        "trace": machine.trace,
        "mount_share": machine.mount_share,
        "automount": machine.automount,
        "unmount": machine.unmount,
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
