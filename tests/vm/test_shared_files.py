"""A file in several mounts is the same file: locks, sockets, FIFOs and mappings work between the mounts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.pod_bundles import FOREVER, role
from tests.support.processes import descendants, name_of
from tests.support.programs import compiled_file
from tests.support.running import running_container
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

PROGRAM = f"{os.path.dirname(__file__)}/shared_files.c"
#: The results of a process when another one holds the same files.
ONE_FILE = {
    "flock": os.strerror(11), "fcntl": os.strerror(11), "socket": "connected", "fifo": "opened", "mapping": "seen",
}  # fmt: skip
HOLD = "shared_files hold {0} & until [ -e {0}/ready ]; do sleep 0.1; done"


def bundle(directory: Path, name: str, binds: dict[str, str], arguments: list[str], pod: bool = True) -> str:
    """A bundle with the program and with binds of host directories, by destination."""
    path = str(directory / name)
    spec = make_bundle(path, arguments)
    shutil.copy(compiled_file(PROGRAM), f"{path}/rootfs/bin/shared_files")
    options = ["rbind", "rprivate"]
    for destination, source in binds.items():
        readonly = ["ro"] if destination.endswith("-ro") else []
        bind = {"destination": destination, "type": "bind", "source": source, "options": [*options, *readonly]}
        spec["mounts"].append(bind)
    if pod:
        spec["annotations"] = role(name)
    write(path, spec)
    return path


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    directory = tmp_path_factory.mktemp("pod")
    with running_container(str(directory), bundle(directory, "pod", {}, FOREVER), "pod") as runtime:
        yield runtime


def seen(text: str) -> Any:
    return json.loads(text.splitlines()[-1])


def test_mounts_of_several_containers_are_one_directory(pod: Runtime, tmp_path: Path) -> None:
    """For the same directory, a directory in it, a directory on a file system that is mounted in it, and again after
    the first container was deleted."""
    data = tmp_path / "data"
    for name in ("sub", "mnt"):
        (data / name).mkdir(parents=True)
    with mounted(data / "mnt"):
        (data / "mnt/sub").mkdir()
        check_mounts(pod, tmp_path, data)


@contextlib.contextmanager
def mounted(directory: Path) -> Iterator[None]:
    """Mount a tmpfs at a directory while the context lasts."""
    subprocess.run(["mount", "-t", "tmpfs", "none", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def check_mounts(pod: Runtime, tmp_path: Path, data: Path) -> None:
    pod.run_detached(bundle(tmp_path, "one", {"/data": str(data)}, FOREVER), "one")
    binds = {"/data": str(data), "/sub": str(data / "sub"), "/data-ro": str(data), "/inner": str(data / "mnt/sub")}
    pod.run_detached(bundle(tmp_path, "two", binds, FOREVER), "two")
    for place in ("/data", "/data/sub", "/data/mnt/sub"):
        assert pod("exec", "one", "/bin/sh", "-c", HOLD.format(place)).code == 0
    for place in ("/data", "/sub", "/data/sub", "/inner", "/data/mnt/sub"):
        checked = pod("exec", "two", "shared_files", "check", place)
        assert seen(checked.output) == ONE_FILE, (place, checked)
    assert pod("exec", "two", "/bin/sh", "-c", ": >/data-ro/new").code != 0
    assert pod("delete", "--force", "one").code == 0
    pod.run_detached(bundle(tmp_path, "three", {"/again": str(data)}, FOREVER), "three")
    (data / "ready").unlink()
    for name in ("fifo", "socket"):
        (data / name).unlink()
    assert pod("exec", "two", "/bin/sh", "-c", HOLD.format("/data")).code == 0
    assert seen(pod("exec", "three", "shared_files", "check", "/again").output) == ONE_FILE
    for name in ("two", "three"):
        assert pod("delete", "--force", name).code == 0


def test_mount_that_the_host_makes_between_two_containers_leaves_one_directory(pod: Runtime, tmp_path: Path) -> None:
    """Where both get the host's later mounts: rslave, HostToContainer in a pod."""
    data = tmp_path / "data"
    (data / "mnt").mkdir(parents=True)
    subprocess.run(["mount", "--bind", "--make-shared", str(data), str(data)], check=True)

    def begin(name: str) -> None:
        path = bundle(tmp_path, name, {"/data": str(data)}, FOREVER)
        spec = json.loads(Path(f"{path}/config.json").read_text())
        spec["mounts"][-1]["options"] = ["rbind", "rslave"]
        write(path, spec)
        pod.run_detached(path, name)

    try:
        begin("before")
        with mounted(data / "mnt"):
            (data / "mnt/file").write_text("inside")
            begin("after")
            assert pod("exec", "before", "/bin/sh", "-c", HOLD.format("/data")).code == 0
            assert seen(pod("exec", "after", "shared_files", "check", "/data").output) == ONE_FILE
            for name in ("after", "before"):
                assert pod("exec", name, "cat", "/data/mnt/file").output == "inside"
                assert pod("delete", "--force", name).code == 0
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)


@contextlib.contextmanager
def slow_server(pod: Runtime) -> Iterator[None]:
    """Stop virtiofsd most of the time, so that read-ahead of the guest takes longer."""
    over = threading.Event()

    def hold_up() -> None:
        while not over.wait(0.003):
            for sent in (signal.SIGSTOP, signal.SIGCONT):
                for pid in servers:
                    os.kill(pid, sent)
                over.wait(0.01 if sent == signal.SIGSTOP else 0)

    monitor = pod.monitor("pod")
    servers = [pid for pid in descendants(monitor) if name_of(pid) == "virtiofsd"]
    assert servers
    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_container_ends_while_its_program_is_read_ahead(pod: Runtime, tmp_path: Path) -> None:
    """The guest kernel would report "Busy inodes" if the mounts of the container were the last of their file system."""
    with slow_server(pod):
        for number in range(8):
            container = bundle(tmp_path, f"short{number}", {}, ["/bin/sh", "-c", "exit 3"])
            assert pod("run", "--bundle", container, f"short{number}").code == 3
    assert "Busy inodes" not in Path(f"{pod.root}/pod/console.log").read_text()


def test_two_mounts_of_one_container_are_one_directory_as_under_runc(tmp_path: Path) -> None:
    script = f"{HOLD.format('/data')}; shared_files check /again; shared_files check /again/sub/..; kill %1"
    results = {}
    for name in ("runc", "hawse"):
        data = tmp_path / f"data-{name}"
        (data / "sub").mkdir(parents=True)
        container = bundle(
            tmp_path, name, {"/data": str(data), "/again": str(data)}, ["/bin/sh", "-c", script], pod=False
        )
        if name == "runc":
            run = subprocess.run(
                ["runc", "run", "--bundle", container, "files-runc"], capture_output=True, text=True, check=False
            )
            results[name] = run.stdout
        else:
            results[name] = Runtime(str(tmp_path))("run", "--bundle", container, "files").output
    assert seen(results["runc"]) == ONE_FILE
    assert results["hawse"] == results["runc"]
