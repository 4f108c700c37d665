"""A client of the Container Runtime Interface, speaking as a kubelet does: gRPC for calls, WebSocket for streams.

Requests and answers are dictionaries by the names of cri.proto, which protoc reads when a client is made.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import urllib.parse
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import websocket
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from hawse.sandbox import namespaces
from tests.support.patience import patience

_PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cri.proto")
#: The channels of the protocol v4.channel.k8s.io (k8s.io/apimachinery pkg/util/remotecommand/constants.go).
_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE = range(5)
_OUTPUTS = {_STDOUT: "stdout", _STDERR: "stderr", _STATUS: "status"}
#: Those of a forwarded port: what it says, and what went wrong, each behind two bytes of the port's number
#: (k8s.io/kubelet pkg/cri/streaming/portforward/websocket.go).
PORT = {0: "stdout", 1: "stderr"}


class CallError(Exception):
    """A call that the engine refused; ``message`` is what a kubelet puts into the pod's events."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@functools.cache
def _methods() -> dict[str, tuple[str, Any, Any]]:
    """By the name of a call: its path, and the classes of its request and answer."""
    made = subprocess.run(
        ["protoc", f"--proto_path={os.path.dirname(_PROTO)}", "--descriptor_set_out=/dev/stdout", _PROTO],
        check=True,
        capture_output=True,
    )
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(made.stdout).file
    for file in files:
        pool.Add(file)
    found = {}
    for file in files:
        for service in file.service:
            for method in service.method:
                kinds = (
                    pool.FindMessageTypeByName(name.lstrip(".")) for name in (method.input_type, method.output_type)
                )
                request, answer = (message_factory.GetMessageClass(kind) for kind in kinds)
                found[method.name] = (f"/{file.package}.{service.name}/{method.name}", request, answer)
    return found


class Cri:
    """A connection to an engine's socket, as a context; called with the name of a call and its fields."""

    def __init__(self, address: str, *, seconds: float = 40) -> None:
        self._channel = grpc.insecure_channel(f"unix://{address}")
        self._seconds = seconds

    def __enter__(self) -> Cri:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def __call__(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer, with what is zero or empty in it. Raises :class:`CallError`."""
        path, request, answer = _methods()[method]
        call = self._channel.unary_unary(
            path, request_serializer=request.SerializeToString, response_deserializer=answer.FromString
        )
        try:
            message = call(
                json_format.ParseDict(fields, request()), timeout=patience(self._seconds), wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise CallError(error.code().name, error.details()) from None
        shown: dict[str, Any] = json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return shown

    def is_ready(self) -> bool:
        """Whether the engine takes calls yet: one that begins answers others before it has found its pods again."""
        try:
            self("Status")
        except CallError as error:
            if "not initialized" not in error.message:
                raise
            return False
        return True


@dataclass
class Streamed:
    """What came over a stream: outputs, and how the process ended as the engine says it."""

    stdout: bytes = b""
    stderr: bytes = b""
    status: bytes = b""

    @property
    def code(self) -> int:
        """The exit code (k8s.io/apimachinery pkg/apis/meta/v1, Status with the cause ExitCode)."""
        status = json.loads(self.status)
        causes = {cause["reason"]: cause["message"] for cause in (status.get("details") or {}).get("causes") or ()}
        return 0 if status["status"] == "Success" else int(causes["ExitCode"])


class Stream:
    """A stream that the engine has prepared at ``url``, as a context; its server listens in ``node``, a namespace.

    ``channels`` are what is kept of what comes over each.
    """

    def __init__(self, url: str, node: int, channels: dict[int, str] = _OUTPUTS) -> None:
        self._channels = channels
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        where = (parts.hostname, parts.port)
        connected = namespaces.within(node, lambda: socket.create_connection(where, timeout=patience(20)))
        self._connected = connected
        self._socket = websocket.create_connection(
            url.replace("http://", "ws://"), socket=connected, subprotocols=["v4.channel.k8s.io"], timeout=60
        )
        self.seen = Streamed()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._connected.close()  # which the library leaves open when the server has closed the stream

    def send(self, data: bytes) -> None:
        """To stdin, or to the port."""
        self._socket.send_binary(bytes([_STDIN]) + data)

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's size."""
        self._socket.send_binary(bytes([_RESIZE]) + json.dumps({"Width": columns, "Height": rows}).encode())

    def until(self, text: bytes) -> Streamed:
        """All that has come when stdout has that."""
        while text not in self.seen.stdout:
            assert self._receive(), self.seen
        return self.seen

    def end(self) -> Streamed:
        """All that came, once the engine has closed the stream."""
        while self._receive():
            pass
        return self.seen

    def _receive(self) -> bool:
        opcode, data = self._socket.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return False
        name = self._channels[data[0]]
        setattr(self.seen, name, getattr(self.seen, name) + data[1:])
        return True
