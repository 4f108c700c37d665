"""A sandbox's network namespace on the host. Joins its interfaces to taps.

Most interfaces exist before the container is created. An engine may add some between create and start (Docker from
version 28 on; moby daemon/start_linux.go), so start looks for new ones again. This module does not import asyncio,
since QEMU's start would wait for the import. :mod:`hawse.monitor.network.nics` passes the taps to QEMU.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

from hawse.errors import HostError, StateError, from_wire
from hawse.host import network_namespace, redirects
from hawse.host.own_programs import program
from hawse.json_text import Document
from hawse.linux.processes import Process
from hawse.version import VERSION

_ANSWER_SECONDS = 60.0
_MAX_ANSWER = 2 * 1024 * 1024
_PROGRAM = program("hawse.tap_helper.main")

Joined = tuple[list[tuple[Document, int]], list[str]]
"""Interfaces, each with its tap's descriptor, and warnings."""


class Joining:
    """A running :mod:`hawse.tap_helper.main`, which joins some interfaces to taps."""

    def __init__(self, namespace: int, indices: list[int], record: str, *, program: str = _PROGRAM) -> None:
        """Start the program, without waiting for it. Raises :class:`HostError` if it cannot be started."""
        try:
            with ExitStack() as undo:
                self._connection, theirs = socket.socketpair()
                undo.callback(self._connection.close)
                self._connection.settimeout(_ANSWER_SECONDS)
                with theirs:
                    self._connection.sendall(json.dumps({"wanted": indices}).encode())
                    arguments = [str(theirs.fileno()), str(namespace), record, VERSION]
                    self._process = subprocess.Popen(
                        [sys.executable, "-I", "-c", program, *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        pass_fds=(theirs.fileno(), namespace),
                        cwd="/",
                    )
                undo.pop_all()
        except OSError as error:
            raise HostError(
                f"cannot start the program that joins the network interfaces: {error.strerror}",
                hint="the host may be out of memory, processes or descriptors",
            ) from None

    def wait(self) -> Joined:
        """Wait for the program. Returns the taps and warnings, or raises the program's error."""
        taps: list[int] = []
        try:
            data = bytearray()
            while b"\n" not in data and len(data) < _MAX_ANSWER:
                # A read stops at the byte that carries a descriptor, so it returns one at most (unix(7), SCM_RIGHTS).
                piece, fds, _, _ = socket.recv_fds(self._connection, 65536, 1)
                taps += fds
                if not piece:
                    break
                data += piece
            line, _, _ = data.partition(b"\n")
            answer = json.loads(line)
            if "error" in answer:
                raise from_wire(answer["error"])
            while len(taps) < len(answer["interfaces"]):
                piece, fds, _, _ = socket.recv_fds(self._connection, 1, 1)
                if not piece:
                    raise ValueError
                taps += fds
        except (ValueError, OSError):
            for tap in taps:
                os.close(tap)
            raise HostError(
                "the program that joins the network interfaces ended without an answer",
                hint="see its output in monitor.log",
            ) from None
        finally:
            self.end()
        return list(zip(answer["interfaces"], taps, strict=True)), answer["warnings"]

    def end(self) -> None:
        """Close the connection, and wait for the program's end. It undoes the interfaces that it has not passed on."""
        self._connection.close()
        self._process.wait()


class Network:
    """The network namespace, if it is known, and the interfaces in it that the sandbox uses."""

    def __init__(self, path: str, directory: str) -> None:
        """Open the namespace at ``path``, "" for none. Raises :class:`ConfigError` if it is not a network namespace."""
        self._directory = directory
        self._namespace = -1
        self._known: set[int] = set()
        self._joining: Joining | None = None
        #: A packet socket in the namespace that receives nothing. It is opened with the namespace, since the monitor
        #: drops the privilege later.
        self.packets: socket.socket | None = None
        if path:
            self._keep(network_namespace.open_path(path), path)

    @property
    def namespace(self) -> int:
        """The namespace's descriptor, -1 for none. :meth:`close` closes it."""
        return self._namespace

    def look(self) -> None:
        """List the interfaces, and start to join new ones. Does not wait for the join."""
        if self._namespace < 0:
            return
        new = network_namespace.within(self._namespace, network_namespace.interfaces).keys() - self._known
        if new:
            self._known |= new
            self._joining = Joining(self._namespace, sorted(new), redirects.record(self._directory))

    def adopt(self, process: Process) -> None:
        """Use the network namespace of the container's process on the host, if the plan names no namespace.

        Engines that set up the network after the container use this namespace. Raises :class:`ConfigError` if it is the
        host's network namespace, and :class:`StateError` if the process has ended.
        """
        if self._namespace >= 0:
            return
        path = f"/proc/{process.pid}/ns/net"
        try:
            namespace = process.open("ns/net")
        except OSError as error:
            reason = "it has ended" if isinstance(error, ProcessLookupError | FileNotFoundError) else error.strerror
            raise StateError(
                f"cannot open the network namespace of the container's process {process.pid} on the host: {reason}"
            ) from None
        try:
            network_namespace.check(namespace, path)
        except BaseException:
            os.close(namespace)
            raise
        self._keep(namespace, path)

    def make_socket(self, kind: int) -> socket.socket:
        """Create a non-blocking IPv4 socket in the namespace. Raises OSError or :class:`HostError`."""
        kind |= socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return network_namespace.within(self._namespace, lambda: socket.socket(socket.AF_INET, kind))

    def take_joining(self) -> Joining | None:
        """Return the program that :meth:`look` started, once. The caller must wait for it."""
        joining, self._joining = self._joining, None
        return joining

    def close(self) -> None:
        """Restore the interfaces. Raises :class:`HostError` if that fails."""
        joining = self.take_joining()
        if joining is not None:
            joining.end()
        try:
            redirects.release(self._directory, namespace=self._namespace)
        finally:
            if self.packets is not None:
                self.packets.close()
            if self._namespace >= 0:
                os.close(self._namespace)
                self._namespace = -1

    def _keep(self, namespace: int, path: str) -> None:
        self._namespace = namespace
        number = os.fstat(self._namespace).st_ino
        entry = {"path": path, "inode": number, "cookie": network_namespace.cookie(self._namespace)}
        redirects.note(redirects.record(self._directory), entry)
        with suppress(OSError):  # a kernel without packet sockets: Nics warns
            self.packets = network_namespace.within(
                namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            )
