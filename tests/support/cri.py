"""A client of the Container Runtime Interface that behaves like a kubelet: gRPC for calls, WebSocket for streams.

Requests and answers are dictionaries with the field names of cri.proto, which protoc compiles for each client.
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

from hawse.host import network_namespace
from tests.support.patience import patience

_PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cri.proto")
#: The channels of the protocol v4.channel.k8s.io (k8s.io/apimachinery pkg/util/remotecommand/constants.go).
_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE = range(5)
_OUTPUTS = {_STDOUT: "stdout", _STDERR: "stderr", _STATUS: "status"}
#: The channels of a forwarded port: data and errors, each preceded by two bytes with the port's number
#: (k8s.io/kubelet pkg/cri/streaming/portforward/websocket.go).
PORT = {0: "stdout", 1: "stderr"}


class CallError(Exception):
    """A call that the engine refused; a kubelet writes ``message`` to the pod's events."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@functools.cache
def _methods() -> dict[str, tuple[str, Any, Any]]:
    """For each call by its name: its path, and the classes of its request and answer."""
    compiled = subprocess.run(
        ["protoc", f"--proto_path={os.path.dirname(_PROTO)}", "--descriptor_set_out=/dev/stdout", _PROTO],
        check=True,
        capture_output=True,
    )
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(compiled.stdout).file
    for file in files:
        pool.Add(file)
    methods = {}
    for file in files:
        for service in file.service:
            for method in service.method:
                kinds = (
                    pool.FindMessageTypeByName(name.lstrip(".")) for name in (method.input_type, method.output_type)
                )
                request, answer = (message_factory.GetMessageClass(kind) for kind in kinds)
                methods[method.name] = (f"/{file.package}.{service.name}/{method.name}", request, answer)
    return methods


class Cri:
    """A connection to an engine's socket, as a context manager; call it with the name of a call and its fields."""

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
        """The answer, including fields that are zero or empty. Raises :class:`CallError`."""
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
        """Whether the engine accepts calls: a starting engine answers some calls before it has found its pods again."""
        try:
            self("Status")
        except CallError as error:
            if "not initialized" not in error.message:
                raise
            return False
        return True


@dataclass
class Streamed:
    """The data received from a stream: outputs, and the process's exit as the engine reports it."""

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
    """A stream that the engine has prepared at ``url``, as a context manager; its server listens in ``node``.

    ``channels`` contains the data received on each channel.
    """

    def __init__(self, url: str, node: int, channels: dict[int, str] = _OUTPUTS) -> None:
        self._channels = channels
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        where = (parts.hostname, parts.port)
        connected = network_namespace.within(node, lambda: socket.create_connection(where, timeout=patience(20)))
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
        self._connected.close()  # The library leaves it open when the server has closed the stream.

    def send(self, data: bytes) -> None:
        """Send data to stdin, or to the port."""
        self._socket.send_binary(bytes([_STDIN]) + data)

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size."""
        self._socket.send_binary(bytes([_RESIZE]) + json.dumps({"Width": columns, "Height": rows}).encode())

    def until(self, text: bytes) -> Streamed:
        """Read until stdout contains ``text``; returns all received data."""
        while text not in self.seen.stdout:
            assert self._receive(), self.seen
        return self.seen

    def end(self) -> Streamed:
        """Read until the engine closes the stream; returns all received data."""
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
