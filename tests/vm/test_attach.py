"""VFIO groups are attached to a running container and detached."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hawse.commands.attach import prepare
from hawse.commands.client import call
from hawse.config import Config
from hawse.state.store import Store
from tests.support.bundles import UNLIMITED, add_devices, build_probe, make_bundle, write
from tests.support.patience import patience, wait_until
from tests.support.pod_bundles import FOREVER
from tests.support.processes import children, name_of
from tests.support.running import running_container
from tests.support.runtime import Runtime
from tests.support.soak import rounds

pytestmark = pytest.mark.vm

GROUPS = """
[emulated]
5 = ["edu"]
6 = ["e1000e"]
7 = ["e1000e", "e1000e"]
8 = ["edu"]
"""
ROUNDS = rounds(10, soak=200)
PIPES: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A running container that was created with group 8, for all tests of this module."""
    directory = str(tmp_path_factory.mktemp("attach"))
    bundle = f"{directory}/bundle"
    spec = make_bundle(bundle, FOREVER, rlimits=[UNLIMITED])
    shutil.copy(build_probe(directory), f"{bundle}/rootfs/bin/probe")
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/8", 511, 8)])
    for mount in spec["mounts"]:
        if mount["destination"] == "/sys":
            mount["options"] = ["nosuid", "noexec", "nodev"]
    write(bundle, spec)
    with running_container(directory, bundle, "c1", configuration=GROUPS) as runtime:
        yield runtime


@pytest.fixture(autouse=True)
def alone(runtime: Runtime) -> Iterator[None]:
    """Each test begins and ends with only group 8."""
    yield
    for entry in runtime.state("c1")["vfio"]:
        if entry["host"]["group"] != 8:
            runtime("detach", "--force", "c1", str(entry["host"]["group"]))
    assert [entry["host"]["group"] for entry in runtime.state("c1")["vfio"]] == [8]


def attached(runtime: Runtime, group: int) -> dict[str, Any]:
    [entry] = [entry for entry in runtime.state("c1")["vfio"] if entry["host"]["group"] == group]
    return dict(entry)


def test_attached_group_is_used_like_one_of_the_bundle(runtime: Runtime) -> None:
    result = runtime("attach", "c1", "5")
    assert result.code == 0, result
    entry = attached(runtime, 5)
    assert entry["guest"]["address"] in result.output
    probe = runtime.shell("c1", "probe /dev/vfio/5")
    assert (probe.code, json.loads(probe.output)["passed"]) == (0, True), probe
    assert runtime.shell("c1", f"probe {entry['nodes'][0]}").code == 0, "the guest's own number"
    assert runtime.shell("c1", "probe /dev/vfio/8").code == 0, "the other one still works"


def test_container_can_read_its_devices(runtime: Runtime) -> None:
    assert json.loads(runtime.shell("c1", "cat /dev/hawse/devices.json").output) == runtime.state("c1")["vfio"]
    runtime("attach", "c1", "5", "6")
    seen = json.loads(runtime.shell("c1", "cat /dev/hawse/devices.json").output)
    assert [entry["host"]["group"] for entry in seen] == [8, 5, 6]
    assert seen == runtime.state("c1")["vfio"]


def test_detached_group_is_gone(runtime: Runtime) -> None:
    runtime("attach", "c1", "5")
    entry = attached(runtime, 5)
    guest = entry["guest"]["address"]
    result = runtime("detach", "c1", guest)
    assert result.errors == (
        f"hawse: {guest} is an address in the guest; on the host this is the emulated group 5 [`hawse detach c1 5`]\n"
    )
    result = runtime("detach", "c1", "5")
    assert result.code == 0, result
    paths = " ".join([*entry["nodes"], f"/sys/bus/pci/devices/{entry['guest']['address']}"])
    assert runtime.shell("c1", f"ls -d {paths} 2>/dev/null").output == ""


def test_group_in_use_is_detached_only_by_force(runtime: Runtime) -> None:
    runtime("attach", "c1", "5")
    script = "exec 3<>/dev/vfio/5; echo open; sleep 1000"
    with runtime.start("exec", "c1", "/bin/sh", "-c", script, **PIPES) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        result = runtime("detach", "c1", "5")
        assert result.code == 1
        assert "of the guest is in use: 'sleep 1000' (process " in result.errors
        assert runtime.shell("c1", "ls /dev/vfio/5").code == 0, "nothing was changed"
        assert runtime("detach", "--force", "c1", "5").code == 0
        assert holder.wait(timeout=patience(20)) == 137


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("8", "group 8 is attached to c1 already"),
        ("99999", "IOMMU group 99999 does not exist"),
        ("0000:ff:1f.7", "0000:ff:1f.7 is not a PCI function of this host"),
        ("nonsense", "'nonsense' is neither a group's number nor a PCI address"),
    ],
)
def test_group_that_cannot_be_attached_is_refused(runtime: Runtime, target: str, words: str) -> None:
    result = runtime("attach", "c1", target)
    assert result.code == 1
    assert words in result.errors


def test_group_that_is_not_attached_cannot_be_detached(runtime: Runtime) -> None:
    result = runtime("detach", "c1", "5")
    assert (result.code, "group 5 is not attached [attached: 8]" in result.errors) == (1, True), result


def test_error_says_that_no_port_is_free(runtime: Runtime) -> None:
    assert runtime("attach", "c1", "5", "6", "7").code == 0
    runtime.configure(GROUPS + '9 = ["edu"]\n')
    result = runtime("attach", "c1", "9")
    runtime.configure(GROUPS)
    assert result.code == 1
    assert "group 9: no spare port is left in the virtual machine" in result.errors


def test_both_functions_of_a_slot_are_attached_and_detached(runtime: Runtime) -> None:
    assert runtime("attach", "c1", "7").code == 0
    entries = [entry for entry in runtime.state("c1")["vfio"] if entry["host"]["group"] == 7]
    assert len({entry["guest"]["group"] for entry in entries}) == 1
    group = entries[0]["guest"]["group"]
    assert len(runtime.shell("c1", f"ls /sys/kernel/iommu_groups/{group}/devices").output.split()) == 2
    assert runtime("detach", "c1", "7").code == 0


def test_lost_events_lose_no_device(runtime: Runtime) -> None:
    """The kernel drops events for a slow listener, so the agent also reads sysfs.

    The agent's socket is the only one of its protocol in /proc/net/netlink that listens (proc(5)).
    """
    drops = "awk '$2 == 15 && $4 != \"00000000\" { print $9 }' /proc/net/netlink"
    # One write for each, without starting a program: the agent is as fast as a shell.
    flood = "while [ ! -e /tmp/enough ]; do yes change | dd bs=7 count=9999 of=/sys/class/mem/null/uevent 2>&-; done"
    loud = runtime.start("exec", "c1", "/bin/sh", "-c", f"{flood} & {flood} & {flood}; wait", stdin=subprocess.DEVNULL)
    try:
        # Three rounds, and more while the agent is fast enough, as it may be on an idle host.
        for number in range(40):
            assert runtime("attach", "c1", "5").code == 0
            assert runtime("detach", "c1", "5").code == 0
            if number >= 2 and int(runtime.shell("c1", f"busybox {drops}").output) > 0:
                break
        else:
            pytest.fail("no event was lost")
    finally:
        # Killing the command that waits would not end the loops, which run in the container.
        assert runtime.shell("c1", "touch /tmp/enough").code == 0
        loud.wait(timeout=patience(20))


@pytest.mark.soak
def test_many_rounds_of_attach_and_detach_leave_nothing(runtime: Runtime) -> None:
    """Over the socket of the monitor, like the commands, but without a process for each."""
    store = Store(runtime.root, "c1")
    [attachment], _ = prepare(store, ["5"], Config(emulated={"5": ["edu"]}))
    call(store, "attach", attachment)
    call(store, "detach", {"group": 5, "force": False})
    before = _settled(runtime), call(store, "room", {})
    for number in range(ROUNDS):
        [entry] = _entries(call(store, "attach", attachment))
        assert entry["host"]["group"] == 5, number
        call(store, "detach", {"group": 5, "force": False})
    assert (_settled(runtime), call(store, "room", {})) == before
    assert runtime("attach", "c1", "5").code == 0
    assert runtime.shell("c1", "probe /dev/vfio/5").code == 0


def test_device_is_attached_while_the_container_is_created(runtime: Runtime, tmp_path: Path) -> None:
    """The guest is booting: a device that is plugged then must not be unplugged as a leftover."""
    runtime.configure(GROUPS + "[template]\nenabled = false\n")
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sleep", "1000"])
    creating = runtime.start("create", "--bundle", bundle, "c2", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: os.path.exists(f"{runtime.root}/c2/console.log"))
        assert runtime.state("c2")["status"] == "creating"
        result = runtime("attach", "c2", "5", "6")
        assert (creating.wait(timeout=patience(20)), result.code) == (0, 0), result
        assert [entry["host"]["group"] for entry in runtime.state("c2")["vfio"]] == [5, 6]
        assert runtime("start", "c2").code == 0
        listing = runtime("exec", "c2", "/bin/ls", "/dev/vfio", "/dev/hawse").output.split()
        assert {"5", "6", "vfio", "devices.json"} <= set(listing)
    finally:
        runtime.configure(GROUPS)
        runtime("delete", "--force", "c2")


def _entries(answer: object) -> list[dict[str, Any]]:
    assert isinstance(answer, list)
    return answer


def _settled(runtime: Runtime) -> dict[str, int]:
    """Wait until the monitor has closed earlier connections; returns :func:`_descriptors`."""
    monitor = runtime.monitor("c1")

    def quiet() -> bool:
        accepted = re.findall(r" 03 +(\d+) \S*/monitor\.sock$", Path("/proc/net/unix").read_text(), re.MULTILINE)
        try:
            links = [os.readlink(path) for path in Path(f"/proc/{monitor}/fd").iterdir()]
        except FileNotFoundError:
            return False  # one was closed meanwhile
        # Without the connection of the first process's proxy, which stays: the container's network namespace lists it.
        return not any(f"socket:[{inode}]" in links for inode in accepted)

    wait_until(quiet)
    return _descriptors(runtime)


def _descriptors(runtime: Runtime) -> dict[str, int]:
    """The numbers of descriptors of the sandbox's processes, by their names."""
    monitor = runtime.monitor("c1")
    counts = {"monitor": len(os.listdir(f"/proc/{monitor}/fd"))}
    for pid in children(monitor):
        with suppress(OSError):  # a command of the monitor, which has ended
            counts[name_of(pid)] = len(os.listdir(f"/proc/{pid}/fd"))
    return counts
