"""Unusual bundles that work under runc: each runs under runc and hawse, and prints the same."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import drop_cgroups, make_bundle, write
from tests.support.mount_table import parse
from tests.support.patience import patience, wait_until
from tests.support.pod_bundles import FOREVER
from tests.support.programs import compiled
from tests.support.runtime import Result, Runtime

pytestmark = pytest.mark.vm

#: Handles SIGTERM from its first instruction on, by creating a file.
HANDLER = """
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(open("/handled", O_CREAT | O_WRONLY, 0600) < 0); }
int main(void) { signal(SIGTERM, end); for (;;) pause(); }
"""


@pytest.mark.parametrize("readonly", [False, True])
def test_mount_points_are_created_as_under_runc(tmp_path: Path, readonly: bool) -> None:
    """A FIFO, dangling links, a relative path, and commas in the paths of state and bundle.

    Also for files of the kernel, a device outside of /dev and a root without /dev: the guest cannot create these in a
    read-only root.
    """
    outputs = {}
    for name in ("hawse", "runc"):
        bundle = str(tmp_path / f"{name},bundle")
        script = (
            "cat /fifo /etc/linked /run/secret/text /links/text; ls -ld /fifo | cut -c1; wc -c < /made/null;"
            "grep -c ^Linux /made/version; ls -d /made/sys/class /made/in/proc/self; head -c 3 /made/zero | wc -c;"
            "ls -l /dev/null | cut -c1"
        )
        spec = make_bundle(bundle, ["/bin/sh", "-c", script])
        spec["root"]["readonly"] = readonly
        source = tmp_path / f"source-{name}"
        source.mkdir()
        (source / "text").write_text("shared\n")
        rootfs = Path(bundle, "rootfs")
        (rootfs / "etc").mkdir(exist_ok=True)
        os.mkfifo(rootfs / "fifo")
        (rootfs / "etc/linked").symlink_to("../srv/deep/file")
        (rootfs / "links").symlink_to("/srv/directory")
        files = {"/fifo": "text", "/etc/linked": "text", "run/secret": ".", "/links": "."}
        spec["mounts"] += [
            {"destination": destination, "type": "bind", "source": str(source / path), "options": ["rbind", "rw"]}
            for destination, path in files.items()
        ]
        kernels = {"/made/null": "/dev/null", "/made/version": "/proc/version", "/made/sys": "/sys"}
        spec["mounts"] += [
            {"destination": destination, "type": "bind", "source": path, "options": ["bind", "ro"]}
            for destination, path in kernels.items()
        ]
        spec["mounts"].append({"destination": "/made/in/proc", "type": "proc", "source": "proc"})
        spec["linux"]["devices"] = [{"path": "/made/zero", "type": "c", "major": 1, "minor": 5}]
        spec["linux"]["resources"]["devices"].append(
            {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"}
        )
        if readonly:
            spec["mounts"] = [mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")]
            (rootfs / "dev").rmdir()
        write(bundle, spec)
        if name == "runc":
            command = ["runc", "run", "--bundle", bundle, "field-runc"]
            outputs[name] = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        else:
            (tmp_path / "state,1").mkdir()
            ran = Runtime(f"{tmp_path}/state,1")("run", "--bundle", bundle, "field")
            assert ran.code == 0, ran
            outputs[name] = ran.output
    expected = "-\n0\n1\n/made/in/proc/self\n/made/sys/class\n3\nc\n"
    assert outputs["hawse"] == outputs["runc"] == "shared\n" * 4 + expected


#: Flags of a mount that a bind or a remount may lose.
FLAGS = {"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"}
POINTS = ("/all", "/some", "/some/kept", "/plain", "/file", "/proc", "/proc/bus", "/proc/sys", "/proc/fs", "/sys")
#: Sizes of the id range of a user namespace.
MAPS = {"no user namespace": 0, "user namespace": 65536, "user namespace of all ids": 2**32 - 1}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that other users may enter, on a file system with noatime. In a user namespace, runc cannot change
    this flag."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        quiet = f"{directory}/quiet"
        os.mkdir(quiet)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "noatime,nodiratime", "quiet", quiet], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", quiet], check=True)


def flags(mountinfo: str) -> dict[str, set[str]]:
    """The flags of the mounts at POINTS; the last mount at a point counts."""
    return {mount.point: FLAGS & mount.options for mount in parse(mountinfo) if mount.point in POINTS}


@pytest.mark.parametrize("users", MAPS)
def test_flags_of_mounts_and_sessions_are_as_under_runc(directory: Path, users: str) -> None:
    """Flags of binds, flags that a read-only path inherits from its mount, and flags of /sys. A process of `exec` leads
    its session, with and without a terminal."""
    source = directory / "source"
    (source / "kept").mkdir(parents=True)
    (source / "file").touch()
    sources = {"/file": source / "file", "/all": directory / "quiet"}
    every = ["nosuid", "nodev", "noexec", "noatime", "nodiratime"]
    options = {"/all": every, "/some": ["noexec"], "/plain": [], "/file": ["ro", "nosuid", "noexec"]}
    seen, container = {}, f"flags-{os.getpid()}"
    for name in ("runc", "hawse"):
        bundle = str(directory / name)
        spec = make_bundle(bundle, FOREVER)
        spec["mounts"] += [
            {
                "destination": destination, "type": "bind", "options": ["bind", *expected_options],
                "source": str(sources.get(destination, source)),
            }
            for destination, expected_options in options.items()
        ]  # fmt: skip
        drop_cgroups(spec)
        spec["mounts"][0]["options"] = ["nosuid", "nodev", "noexec"]
        assert spec["mounts"][0]["destination"] == "/proc"
        spec["linux"]["readonlyPaths"].append("/some/kept")
        del spec["process"]["rlimits"]  # runc may not raise them everywhere
        if count := MAPS[users]:
            base = 0 if count == 2**32 - 1 else 100000
            ids = [{"containerID": 0, "hostID": base, "size": count}]
            spec["linux"] |= {"uidMappings": ids, "gidMappings": ids}
            spec["linux"]["namespaces"].append({"type": "user"})
            for parent, _, files in os.walk(f"{bundle}/rootfs"):
                for file in ("", *files):
                    os.chown(f"{parent}/{file}", base, base, follow_symlinks=False)
        write(bundle, spec)
        run: Callable[..., Any]
        if name == "hawse":
            runtime = Runtime(str(directory))
            runtime.run_detached(bundle, container)
            run = runtime
        else:
            run = partial(_runc, str(directory))
            assert run("run", "--detach", "--bundle", bundle, container).code == 0
        try:
            looked = run("exec", container, "/bin/cat", "/proc/self/mountinfo", "/proc/self/uid_map")
            mapped = looked.output.splitlines()[-1].split()
            leads = run(
                "exec", container, "/bin/sh", "-c", "set -- $(cat /proc/$$/stat); test $1 = $5 -a $1 = $6; echo $?"
            )
            ended = run("exec", container, "/bin/sh", "-c", "sleep 100 & kill -TERM -$$; sleep 100")
            seen[name] = flags(looked.output), mapped, leads.output, ended.code
        finally:
            run("delete", "--force", container)
    assert seen["hawse"] == seen["runc"]
    assert (seen["hawse"][2:], set(seen["hawse"][0])) == (("0\n", 143), set(POINTS))


def _runc(directory: str, *arguments: str) -> Result:
    words = ["runc", "--root", f"{directory}/runc", *arguments]
    with open(f"{directory}/said", "w+") as said:  # not a pipe, which the container would inherit
        ran = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False)
        said.seek(0)
        return Result(ran.returncode, said.read(), "")


def test_signal_right_after_the_start_is_handled(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/handler"])
    program = Path(bundle, "rootfs/bin/handler")
    program.write_bytes(Path(compiled(HANDLER)).read_bytes())
    program.chmod(0o755)
    for number in range(3):
        runtime.run_detached(bundle, f"c{number}")
        assert runtime("kill", f"c{number}", "TERM").code == 0
        wait_until(Path(bundle, "rootfs/handled").exists, seconds=patience(20))
        Path(bundle, "rootfs/handled").unlink()
        assert runtime("delete", "--force", f"c{number}").code == 0


def test_null_in_a_list_is_an_empty_text_as_under_runc(tmp_path: Path) -> None:
    outputs = {}
    for name in ("hawse", "runc"):
        bundle = str(tmp_path / name)
        script = "echo $#; id -G; wc -c < /proc/keys; touch /writable || echo refused; "
        script += "touch /proc/sys/x 2>/dev/null || echo read-only"
        spec = make_bundle(bundle, ["/bin/sh", "-c", script, "sh"])
        spec["process"]["args"] += [None, "a", None]
        spec["process"]["user"]["additionalGids"] = [5, None]
        spec["mounts"][1]["options"].append(None)
        spec["linux"]["maskedPaths"] = [None, "/proc/keys"]
        spec["linux"]["readonlyPaths"] = [None, "/proc/sys"]
        write(bundle, spec)
        if name == "runc":
            command = ["runc", "run", "--bundle", bundle, "null-runc"]
            outputs[name] = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        else:
            outputs[name] = Runtime(str(tmp_path))("run", "--bundle", bundle, "null").output
    assert outputs["hawse"] == outputs["runc"] == "3\n0 5\n0\nread-only\n"
