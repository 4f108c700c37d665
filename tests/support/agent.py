"""The real agent as a subprocess, and the host's end of its link, for tests without a VM."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import msgspec

import hawse
from hawse.errors import HawseError
from hawse.link import messages
from hawse.link.blocking import Port
from hawse.link.frames import CREDIT, DATA, EOF, EVENT, REPLY, Frame, encode
from hawse.link.streams import STREAMS
from hawse.monitor.agent.calls import CALLS, Call, parameters, read_answer
from tests.support.patience import patience

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))
_FAKE_CRUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_crun.py")


class Agent:
    """Sends calls and frames over ``connection``, as the monitor does; ``pid`` is the agent's.

    ``root``: a directory with /sys, /proc and /dev for the agent. ``unshare``: options of unshare(1) for private
    namespaces, so that the agent's changes in them end with it.
    """

    def __init__(self, directory: str, *, root: str = "", unshare: tuple[str, ...] = ()) -> None:
        self._directory = self.directory = directory
        self._root = root
        self._unshare = ["unshare", *unshare, "--"] if unshare else []

    def __enter__(self) -> Agent:
        self.connection, theirs = socket.socketpair()
        # Waiting for a frame that does not arrive is an error. settimeout() is no use: the port reads the descriptor.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(patience(10)), 0))
        program = f"import sys; sys.path.insert(0, {_PACKAGES!r}); from hawse.agent.__main__ import main; main()"
        options = ["--link-fd", str(theirs.fileno()), "--run", self._directory, "--crun", _FAKE_CRUN]
        options += ["--root", self._root]
        self._process = subprocess.Popen(
            [*self._unshare, sys.executable, "-I", "-S", "-c", program, *options],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        theirs.close()
        self.port = Port(self.connection.fileno())
        self.frames: Iterator[Frame] = self.port.frames()
        self._number = 0
        self.seen: list[Frame] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._process.communicate(timeout=patience(10))
        # In a guest everything ends with the VM; here the crun that waits for a container would remain.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def call(self, method: str, **params: Any) -> Any:
        """Make a call as the monitor does; returns the result, which the monitor would take.

        Fields with a default may be missing. Other frames that arrive first are stored in ``seen``. Raises the agent's
        error.
        """
        call = _call(method, params)
        result = self.ask(method, **parameters(call))
        read_answer(call, result)
        return result

    def send(self, method: str, **params: Any) -> None:
        """Send a call as the monitor does, without waiting for the answer."""
        self._send(method, parameters(_call(method, params)))

    def ask(self, method: str, **params: Any) -> object:
        """Make a call of any form; returns the result. Raises the agent's error."""
        self._send(method, params)
        number, result, error = self.answer()
        assert number == self._number
        if error is not None:
            raise error
        return result

    def _send(self, method: str, params: dict[str, Any]) -> None:
        self._number += 1
        self.port.send(messages.encode_call(self._number, method, params))

    def answer(self) -> tuple[int, object, HawseError | None]:
        """Wait for the next answer: the number of its call, and the result or the error."""
        for frame in self.frames:
            if frame[1] == REPLY:
                return messages.decode_reply(frame[2])
            self.seen.append(frame)
        raise HawseError("the agent ended")

    def event(self, name: str) -> dict[str, Any]:
        """Wait for the next event of that name; returns its parameters."""
        for frame in self.everything():
            if frame[1] == EVENT:
                event, params = messages.decode_event(frame[2])
                if event == name:
                    return params
        raise HawseError("the agent ended")

    def everything(self) -> Iterator[Frame]:
        """Frames received during calls, then those that arrive."""
        while self.seen:
            yield self.seen.pop(0)
        # Not "yield from": closing this generator would close the link's reader as well.
        while (frame := next(self.frames, None)) is not None:
            yield frame

    def crun_calls(self, *verbs: str) -> list[dict[str, Any]]:
        """The fake crun's calls of these verbs so far, in order."""
        with open(f"{self._directory}/crun/calls") as file:
            calls = [json.loads(line) for line in file]
        return [call for call in calls if call["verb"] in verbs]

    def output_until_exit(self, process: int, *, credit: bool = True) -> tuple[dict[int, bytes], int]:
        """Read until a process exits; returns {descriptor: bytes} of its outputs, and its exit code."""
        output = {1: b"", 2: b""}
        for stream, kind, payload in self.everything():
            if kind == DATA and stream // STREAMS == process:
                output[stream % STREAMS] = output.get(stream % STREAMS, b"") + payload
                if credit:
                    self.port.send(encode(stream, CREDIT, len(payload).to_bytes(4, "big")))
            elif kind == EVENT:
                name, params = messages.decode_event(payload)
                if name == "exit" and params["process"] == process:
                    return output, params["code"]
        raise HawseError("the agent ended")

    def write(self, process: int, data: bytes, *, descriptor: int = 0, end: bool = True) -> None:
        """Send input to the process, for its stdin or another descriptor."""
        stream = process * STREAMS + descriptor
        self.port.send(encode(stream, DATA, data))
        if end:
            self.port.send(encode(stream, EOF))

    def wait(self) -> str:
        """Wait until the agent exits by itself; returns its stderr."""
        _, errors = self._process.communicate(timeout=patience(10))
        return errors.decode()


def _call(method: str, params: dict[str, Any]) -> Call[Any]:
    """The call with these fields, checked."""
    kind = CALLS[method]
    unknown = params.keys() - kind.__struct_fields__
    assert not unknown, f"{method} has no field {unknown}"
    call: Call[Any] = msgspec.convert(params, type=kind)
    return call
