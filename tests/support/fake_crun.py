#!/usr/bin/python3 -IS
"""The part of crun's command line that the agent uses, without containers: its programs run on the host itself.

Annotations: "takes" is the duration of a creation in seconds; with "chroot" the first process enters root.path, where
it can wait but not be started. Each hook takes a fifth of a second. A unified limit "refused" is refused. Commands are
recorded as JSON in the file "calls" of crun's root.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
    verb, *_, name = [word for word in sys.argv[1:] if not word.startswith("--")]
    directory = f"{options['root']}/{name}"
    gate = f"{directory}/exec.fifo"
    call: dict[str, object] = {"verb": verb, "name": name}
    spec: dict[str, Any] = {}
    if verb == "start":
        record(options, call)
        with open(gate, "w") as file:
            file.write("go")
        return
    if verb not in ("create", "exec"):
        resources = {}
        if "resources" in options:
            with open(options["resources"]) as file:
                resources = json.load(file)
        record(options, {**call, "resources": resources})
        if verb == "delete":
            remove(directory)
        refuse(options, resources)
        return
    if verb == "create":
        os.makedirs(directory)
        os.mkfifo(gate)
        waiting = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
        with open(options.get("config", f"{options['bundle']}/config.json")) as file:
            spec = json.load(file)
        process = spec["process"]
        time.sleep(float(spec.get("annotations", {}).get("takes", "0")))
    else:
        with open(options["process"]) as file:
            process = json.load(file)
    namespaces = spec.get("linux", {}).get("namespaces") or ()
    joined = {entry["type"]: os.readlink(entry["path"]) for entry in namespaces if "path" in entry}
    record(options, {**call, "spec": spec, "preserved": options.get("preserve-fds"), "joined": joined})
    refuse(options, spec.get("linux", {}).get("resources") or {})
    program = process["args"][0]
    if not os.path.exists(program):
        fail(options, f"executable file `{program}` not found in $PATH: No such file or directory")
    terminal = open_terminal(options["console-socket"]) if "console-socket" in options else -1
    placed, in_place = os.pipe()
    child = os.fork()
    if child:
        os.close(in_place)
        os.read(placed, 1)  # at the end, as with crun: the process is in its root directory when its pid is known
        with open(options["pid-file"], "w") as file:
            file.write(str(child))
        return
    if terminal >= 0:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(terminal, fd)
        os.close(terminal)
    if "chroot" in spec.get("annotations", {}):
        os.chroot(spec["root"]["path"])
    os.close(in_place)
    if verb == "create":
        # By this descriptor, since the starting process removes the name before it writes.
        poll = select.poll()
        poll.register(waiting, select.POLLIN)
        poll.poll()
    time.sleep(0.2 * len(spec.get("hooks", ())))
    os.execv(program, process["args"])


def remove(directory: str) -> None:
    if os.path.isdir(directory):
        for file in os.listdir(directory):
            os.unlink(f"{directory}/{file}")
        os.rmdir(directory)


def record(options: dict[str, str], call: dict[str, object]) -> None:
    os.makedirs(options["root"], exist_ok=True)
    with open(f"{options['root']}/calls", "a") as file:
        file.write(json.dumps(call) + "\n")


def refuse(options: dict[str, str], resources: dict[str, dict[str, str]]) -> None:
    for name, value in (resources.get("unified") or {}).items():
        if value == "refused":
            fail(options, f"open `{name}`: No such file or directory")


def fail(options: dict[str, str], message: str) -> None:
    with open(options["log"].removeprefix("file:"), "w") as file:
        json.dump({"msg": message}, file)
    sys.exit(1)


def open_terminal(path: str) -> int:
    """Send the terminal's master side to the console socket; returns the slave side."""
    import socket  # imported here, since most calls do not need it

    master, slave = os.openpty()
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(path)
        socket.send_fds(console, [b"terminal"], [master])
    os.close(master)
    return slave


main()
