#!/usr/bin/python3 -IS
"""A QEMU that the monitor can start, with only QMP and the link: it has no VM, and its guest accepts every call.

The guest's programs are keywords: "exit N" writes a line and exits with that code, "env" writes the environment, "wait"
ends by a signal, and with "die" QEMU itself exits. A file next to this program, with the suffix ".json", contains the
answers to QMP queries on stdio.
"""

import json
import os
import re
import socket
import struct
import sys
import threading
import time

CALL, REPLY, EVENT, DATA = 1, 2, 3, 4
STREAMS = 64
programs: dict[int, list[str]] = {}
first: dict[str, int] = {}


def inherited(name: str) -> socket.socket:
    match = re.search(rf"id={name},fd=(\d+)", " ".join(sys.argv))
    assert match is not None
    return socket.socket(fileno=int(match[1]))


def questions() -> None:
    sys.stdin.read()
    with open(f"{sys.argv[0]}.json") as file:
        print(file.read(), end="")


def monitor(connection: socket.socket) -> None:
    """QMP: every command succeeds."""

    def send(message: dict[str, object]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\r\n")

    version = {"qemu": {"major": 9, "minor": 2, "micro": 0}, "package": ""}
    send({"QMP": {"version": version, "capabilities": []}})
    text, given = "", []
    while True:
        piece, descriptors, _, _ = socket.recv_fds(connection, 65536, 4)
        if not piece:
            return
        text = (text + piece.decode()).lstrip()  # a descriptor arrives with a space
        given += descriptors
        try:
            command, end = json.JSONDecoder().raw_decode(text)  # the library does not send line ends
        except ValueError:
            continue
        text = text[end:]
        arguments = command.get("arguments", {})
        if command["execute"] == "migrate":
            with open(given.pop(), "wb") as target:
                target.write(b"state")
        answer = {"status": "completed"} if command["execute"] == "query-migrate" else {}
        send({"return": answer} | {key: command[key] for key in ("id",) if key in command})
        if command["execute"] == "device_del":
            moment = {"seconds": 1, "microseconds": 0}
            send({"event": "DEVICE_DELETED", "timestamp": moment, "data": {"device": arguments["id"]}})


def guest(connection: socket.socket) -> None:
    """The agent: every call succeeds."""

    def frame(stream: int, kind: int, payload: bytes) -> None:
        connection.sendall(struct.pack(">IBI", stream, kind, len(payload)) + payload)

    def message(kind: int, content: dict[str, object]) -> None:
        frame(0, kind, json.dumps(content).encode())

    def end(process: int, code: int) -> None:
        message(EVENT, {"event": "exit", "params": {"process": process, "code": code}})

    def begin(process: int) -> None:
        words = programs[process]
        if words[0] == "die":
            os.write(2, b"qemu: out of order\n")
            os._exit(1)
        if words[0] == "env":
            frame(process * STREAMS + 1, DATA, "\n".join(environment).encode())
            end(process, 0)
        if words[0] == "exit":
            frame(process * STREAMS + 1, DATA, b"hello\n")
            end(process, int(words[1]))

    environment: list[str] = []
    message(EVENT, {"event": "hello", "params": {"protocol": 2}})
    stream = connection.makefile("rb")
    while header := stream.read(9):
        _, kind, length = struct.unpack(">IBI", header)
        payload = stream.read(length)
        if kind != CALL:
            continue
        call = json.loads(payload)
        method, params = call["method"], call["params"]
        if method in ("create", "exec"):
            spec = params["spec"]["process"] if method == "create" else params["spec"]
            programs[params["process"]] = spec["args"]
            environment = spec.get("env", [])
        if method == "trace":
            time.sleep(0.1)  # a program that exits at once has exited before
        result = {"wake": {"monotonic_ns": 1}, "trace": []}.get(method)
        message(REPLY, {"id": call["id"], "result": result})
        if method == "create":
            first[params["container"]] = params["process"]
        elif method == "exec":
            begin(params["process"])
        elif method == "start":
            begin(first[params["container"]])
        elif method == "signal" and params["process"] in programs:
            end(params["process"], 128 + params["signal"])
            del programs[params["process"]]


if "stdio" in sys.argv:
    questions()
else:
    threading.Thread(target=monitor, args=(inherited("qmp"),), daemon=True).start()
    guest(inherited("link"))
