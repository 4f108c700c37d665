"""Mounts from the host: files with every option, overlays, sockets, FIFOs and later changes.

One bundle also runs under runc.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.patience import patience, wait_until
from tests.support.pod_bundles import FOREVER, KIND, SANDBOX
from tests.support.programs import compiled_file
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

PROGRAM = f"{os.path.dirname(__file__)}/host_files.c"
FILES = {
    "/ro": ["rbind", "ro", "rro", "rprivate"],
    "/rw": ["bind", "ro", "rrw"],
    "/flags": ["rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime"],
    "/more": ["bind", "nosuid", "rsuid", "rnodiratime", "rstrictatime"],
}
ASK = (
    "cat /ro /rw /flags /more; for f in ro rw; do echo more >> /$f; done;"
    "/flags; /more; "
    "for f in ro rw flags; do grep \" /$f \" /proc/self/mountinfo | head -n 1 | "
    "{ read _ _ _ _ point options _; for o in ro nosuid nodev noexec noatime; do "
    "case ,$options, in *,$o,*) echo $point $o;; esac; done; }; done;"
    "cd /over; ls; cat file; echo new > made; echo changed > file; rm removed; mkdir -p deep/er; ls;"
    "cd /image; ls; cat first second; echo x > new;"
    "cd /shown; ls; cat file; echo x > file"
)  # fmt: skip


def mounts_of(directory: Path) -> list[dict[str, Any]]:
    """Files with options, a writable overlay as of Podman, and two read-only overlays."""
    names = ("lower,x:y", "upper,x", "work,x", "one", "two")
    lower, upper, work, one, two = (directory / name for name in names)
    for created in (lower, upper, work, one, two):
        created.mkdir(parents=True)
    for name in ("file", "removed"):
        (lower / name).write_text(f"{name} below\n")
    (one / "first").write_text("first\n")
    (two / "second").write_text("second\n")
    script = directory / "script"
    script.write_text("#!/bin/sh\necho it runs\n")
    script.chmod(0o755)
    binds = []
    for destination, options in FILES.items():
        copy = directory / destination[1:]
        shutil.copy(script, copy)
        binds.append({"destination": destination, "type": "bind", "source": str(copy), "options": options})

    def escaped(path: Path) -> str:
        return str(path).replace(",", "\\,").replace(":", "\\:")

    def overlay(destination: str, *options: str) -> dict[str, Any]:
        # Podman splits the options at every comma.
        return {"destination": destination, "type": "overlay", "source": "overlay",
                "options": ",".join(options).split(",")}  # fmt: skip

    layers = [f"lowerdir={escaped(lower)}", f"upperdir={escaped(upper)}", f"workdir={escaped(work)}", "private"]
    return [
        *binds,
        overlay("/over", *layers),
        overlay("/image", f"lowerdir={one}:{two}", "private"),
        overlay("/shown", f"lowerdir={escaped(lower)}:{one}", "ro"),
    ]


def bundle(directory: Path, name: str, arguments: list[str], mounts: list[dict[str, Any]], **notes: str) -> str:
    path = str(directory / name)
    spec = make_bundle(path, arguments)
    shutil.copy(compiled_file(PROGRAM), f"{path}/rootfs/bin/host_files")
    spec["mounts"] += mounts
    spec["annotations"] = notes
    write(path, spec)
    return path


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that supports the upper layer of an overlay."""
    place = tmp_path / "layers"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "layers", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_files_with_recursive_options_and_overlays_are_as_under_runc(
    runtime: Runtime, tmp_path: Path, layers: Path
) -> None:
    """The upper directory is on the host. Another container of the pod shares the same overlay."""
    seen, upper = {}, {}
    for name in ("hawse", "runc"):
        mounts = mounts_of(layers / name)
        if name == "runc":
            pod_bundle = bundle(tmp_path, name, ["/bin/sh", "-c", ASK], mounts)
            command = ["runc", "--root", f"{tmp_path}/root", "run", "--bundle", pod_bundle, "files-runc"]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            seen[name] = ran.stdout, ran.stderr.count("Read-only file system")
        else:
            runtime.run_detached(bundle(tmp_path, "pod", FOREVER, mounts, **{KIND: "sandbox"}), "pod")
            result = runtime("exec", "pod", "/bin/sh", "-c", ASK)
            seen[name] = result.output, result.errors.count("Read-only file system")
            over = [mount for mount in mounts if mount["destination"] == "/over"]
            script = "ls /over; echo second > /over/again; cat /over/file"
            two = bundle(tmp_path, "two", ["/bin/sh", "-c", script], over, **{KIND: "container", SANDBOX: "pod"})
            joined = runtime("run", "--bundle", two, "two")
            assert joined.output.split() == ["deep", "file", "made", "changed"], joined
            assert runtime("exec", "pod", "/bin/sh", "-c", "cat /over/again; echo 3 > /over/third").output == "second\n"
            for container in ("two", "pod"):
                assert runtime("delete", "--force", container).code == 0
        written = layers / name / "upper,x"
        upper[name] = {entry.name: entry.stat().st_mode for entry in written.iterdir()}
        assert (layers / name / "lower,x:y/file").read_text() == "file below\n"
    assert seen["hawse"] == seen["runc"]
    assert seen["hawse"][1] == 3, seen
    assert upper["hawse"].pop("again") and upper["hawse"].pop("third")
    assert upper["hawse"] == upper["runc"]


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Path]:
    """Sockets of the host, two that answer in upper case and one for datagrams, and a FIFO."""
    place = tmp_path / "sockets"
    place.mkdir()
    os.mkfifo(place / "fifo")

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                data = b""
                while piece := connection.recv(4096):
                    data += piece
                connection.sendall(data.upper())

    with ExitStack() as undo:
        for name in ("api", "plain"):
            listening = undo.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(f"{place}/{name}")
            listening.listen()
            os.chmod(place / name, 0o660)
            thread = threading.Thread(target=serve, args=(listening,))
            undo.callback(thread.join)
            undo.callback(listening.shutdown, socket.SHUT_RDWR)
            thread.start()
        log = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        log.bind(f"{place}/log")
        yield place


def test_sockets_are_forwarded_if_allowed_and_changes_are_found_by_polling(
    runtime: Runtime, tmp_path: Path, sockets: Path
) -> None:
    """A link to a directory is replaced, as in a ConfigMap. Under runc the container also gets inotify events."""
    runtime.configure(f'[share]\nforward_sockets = ["{sockets}/a*", "{sockets}/log"]\n')
    bound = {"/run/api": "api", "/run/plain": "plain", "/dev/log": "log", "/run/fifo": "fifo"}

    def mounts(name: str) -> list[dict[str, Any]]:
        data = tmp_path / f"data-{name}"
        for number in ("..1", "..2"):
            (data / number).mkdir(parents=True)
            (data / number / "file").write_text(f"{number}\n")
        (data / "..data").symlink_to("..1")
        (data / "file").symlink_to("..data/file")
        binds = {destination: str(sockets / source) for destination, source in bound.items()} | {"/data": str(data)}
        return [{"destination": d, "type": "bind", "source": s, "options": ["rbind"]} for d, s in binds.items()]

    def change(name: str) -> None:
        data = tmp_path / f"data-{name}"
        wait_until((data / "ready").exists, seconds=patience(20))
        # After the program has forgotten its own file.
        threading.Event().wait(patience(0.5))
        (data / "..tmp").symlink_to("..2")
        os.rename(data / "..tmp", data / "..data")

    hawse = bundle(tmp_path, "hawse", FOREVER, mounts("hawse"))
    log = tmp_path / "log.json"
    null = subprocess.DEVNULL
    # Not with pipes, which the container would inherit.
    create = runtime.argv("create", "--bundle", hawse, "c1", log=True)
    assert subprocess.run(create, stdin=null, stdout=null, stderr=null, check=False).returncode == 0, log.read_text()
    warned = [json.loads(line)["msg"] for line in log.read_text().splitlines()]
    for name, words in (("plain", "connections to it are refused"), ("log", "for datagrams"), ("fifo", "is a FIFO")):
        assert len([text for text in warned if f"{sockets}/{name} is a" in text and words in text]) == 1, warned
    assert not [text for text in warned if f"{sockets}/api" in text], warned
    assert runtime("start", "c1").code == 0
    runc = ["runc", "--root", f"{tmp_path}/root"]
    command = [*runc, "run", "--detach", "--bundle", bundle(tmp_path, "runc", FOREVER, mounts("runc")), "files-runc"]
    subprocess.run(command, stdin=null, stdout=null, check=True)
    asks = {"hawse": runtime.argv("exec", "c1"), "runc": [*runc, "exec", "files-runc"]}
    try:
        for name, ask in asks.items():
            script = (
                "host_files connect /run/api hello; host_files connect /run/plain hello; stat -c '%F %a %u' /run/api;"
                "stat -c %F /run/fifo /dev/log"
            )
            answer = subprocess.run([*ask, "/bin/sh", "-c", script], capture_output=True, text=True, check=False)
            plain = "HELLO" if name == "runc" else "Connection refused"
            assert answer.stdout.splitlines() == ["HELLO", plain, "socket 660 0", "fifo", "socket"], (name, answer)
            watching = subprocess.Popen([*ask, "host_files", "watch", "/data"], stdout=subprocess.PIPE, text=True)
            change(name)
            heard, _ = watching.communicate(timeout=patience(20))
            assert heard == f"..2, inotify: {'yes' if name == 'runc' else 'no'}\n"
    finally:
        subprocess.run([*runc, "delete", "--force", "files-runc"], check=True)
