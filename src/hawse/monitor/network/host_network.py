"""A sandbox's network namespace on the host, and joining its interfaces to taps.

Most interfaces come before the container is created. An engine may also bring some between create and start (Docker
from version 28 on; moby daemon/start_linux.go), so that start looks again. No asyncio here: QEMU's start would wait
for its loading. What becomes of the taps is :mod:`hawse.monitor.network.nics`'s.
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
from hawse.host.programs import program
from hawse.json_text import Document
from hawse.linux.processes import Process
from hawse.version import VERSION

_ANSWER_SECONDS = 60.0
_MAX_ANSWER = 2 * 1024 * 1024
_PROGRAM = program("hawse.tap_helper.main")

Joined = tuple[list[tuple[Document, int]], list[str]]
"""Interfaces, each with its tap's descriptor, and warnings."""


class Joining:
    """The program :mod:`hawse.tap_helper.main` at work on some interfaces."""

    def __init__(self, namespace: int, wanted: list[int], record: str, *, program: str = _PROGRAM) -> None:
        """Start it; nothing is waited for. Raises :class:`HostError` when it cannot be started."""
        try:
            with ExitStack() as undo:
                self._connection, theirs = socket.socketpair()
                undo.callback(self._connection.close)
                self._connection.settimeout(_ANSWER_SECONDS)
                with theirs:
                    self._connection.sendall(json.dumps({"wanted": wanted}).encode())
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
                f"the program that joins the network interfaces cannot be started: {error.strerror}",
                hint="the host may have no memory, processes or descriptors left",
            ) from None

    def wait(self) -> Joined:
        """What became of it. Raises what the program raised."""
        taps: list[int] = []
        try:
            data = bytearray()
            while b"\n" not in data and len(data) < _MAX_ANSWER:
                # What is received may end with the first descriptor's byte, and with no other's (unix(7), SCM_RIGHTS).
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
                "the program that joins the network interfaces ended before its time", hint="monitor.log has its words"
            ) from None
        finally:
            self.end()
        return list(zip(answer["interfaces"], taps, strict=True)), answer["warnings"]

    def end(self) -> None:
        """Close the connection, which has it undo what it has not handed over, and wait for its end."""
        self._connection.close()
        self._process.wait()


class Network:
    """The namespace, once it is known, and what of it is the sandbox's."""

    def __init__(self, path: str, directory: str) -> None:
        """Open the namespace at ``path``, if any. Raises :class:`ConfigError` where it is none."""
        self._directory = directory
        self._namespace = -1
        self._known: set[int] = set()
        self._joining: Joining | None = None
        #: A packet socket in the namespace that receives nothing. It is made here since later the monitor may not.
        self.packets: socket.socket | None = None
        if path:
            self._keep(network_namespace.open_path(path), path)

    @property
    def namespace(self) -> int:
        """A descriptor of it, -1 for none; it is closed with this object."""
        return self._namespace

    def look(self) -> None:
        """Begin to join the interfaces that are new, if any; only the look is waited for."""
        if self._namespace < 0:
            return
        new = network_namespace.within(self._namespace, network_namespace.interfaces).keys() - self._known
        if new:
            self._known |= new
            self._joining = Joining(self._namespace, sorted(new), redirects.record(self._directory))

    def adopt(self, process: Process) -> None:
        """Where the plan names no namespace, the one of the container's process on the host is the sandbox's.

        Engines that make the network after the container find it there. Raises :class:`ConfigError` where that is the
        host's own, and :class:`StateError` where the process has ended.
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
        """A socket of IPv4 in the namespace, which does not block. Raises OSError or :class:`HostError`."""
        kind |= socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return network_namespace.within(self._namespace, lambda: socket.socket(socket.AF_INET, kind))

    def taken(self) -> Joining | None:
        """What the last look has begun, once; it is the caller's to wait for."""
        joining, self._joining = self._joining, None
        return joining

    def close(self) -> None:
        """Undo what was done to the interfaces. Raises :class:`HostError` where that fails."""
        joining = self.taken()
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
        with suppress(OSError):  # a kernel without them: what they are for warns
            self.packets = network_namespace.within(
                namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            )
