"""Calls to the guest when a container or an exec process is created, and the exit codes of their proxies.

Of :mod:`hawse.monitor.container` and :mod:`hawse.monitor.processes.process_table`, through the socket of the monitor.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.errors import StateError, VmError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.link.frames import DATA, EOF, encode
from hawse.link.streams import STREAMS
from hawse.linux.processes import Process
from hawse.monitor.container import Container
from hawse.monitor.processes.process_table import KILLED, LOST
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.oci.process.inherited import Inherited
from hawse.plan.model import DiskPlan
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.state.store import Store
from hawse.vfio.node import file_node, group_node
from hawse.vm.ports import place
from tests.support.async_wait import until
from tests.support.groups import BOUND, EDU, NICS
from tests.support.pods import KEY, events, heard, pod, run, settle

TERMINAL = {"args": ["sh"], "terminal": True}
SIZE = {"rows": 24, "columns": 80}


def test_resources_are_prepared_before_the_container(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            first = len(sandbox.guest.calls)
            await sandbox.join(memory={"shm": 4096}, sysctls={"net.x": "1"}, hugepages=[(2048, 3)])
            calls = sandbox.guest.calls[first:]
            assert [method for method, _ in calls] == [
                "bind_vfio", "reserve_hugepages", "share_memory", "set_sysctls", "create"
            ]  # fmt: skip
            assert calls[1][1] == {"kib": 2048, "count": 3}
            assert calls[2][1] == {"name": "shm", "size": 4096}
            assert calls[3][1] == {"values": {"net.x": "1"}}
            call = calls[4][1]
            assert (call["container"], call["process"], call["descriptors"], call["joins"]) == ("c2", 2, [], {})
            assert call["spec"] == {"process": {"args": ["x"]}}
            assert [entry["guest"]["group"] for entry in call["devices"]] == [BOUND["group"]]
            assert (call["binds"], call["sockets"], call["notify"]) == ([], [], False)
            await sandbox.call("c2", "delete")
            assert sandbox.guest.asked("reserve_hugepages")[1:] == [{"kib": 2048, "count": -3}]

    run(story)


def test_plain_container_needs_only_create(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(plugs=[])
            assert {method for method, _ in sandbox.guest.calls} == {"create"}

    run(story)


@pytest.mark.parametrize(
    ("process", "size", "shown"),
    [
        (TERMINAL, SIZE, {"height": 24, "width": 80}),
        (TERMINAL, {}, None),
        ({"args": ["sh"]}, SIZE, None),
    ],
)
def test_terminal_size_is_in_the_specification(
    tmp_path: Path, process: dict[str, Any], size: dict[str, int], shown: dict[str, int] | None
) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.announce(f"c2/{KEY}", **size)
            await sandbox.create(sandbox.joining(plugs=[], spec={"process": process}))
            assert sandbox.guest.asked("create")[-1]["spec"]["process"].get("consoleSize") == shown
            await sandbox.call("c2", "start")
            await sandbox.announce("c2/k", **size)
            assert await sandbox.call("c2", "exec", key="k", process=process) == os.getpid()
            [call] = sandbox.guest.asked("exec")
            assert (call["container"], call["process"], call["spec"].get("consoleSize")) == ("c2", 3, shown)
            # It may have changed since the specification was sent.
            resized = [(call["container"], call["process"], call["rows"], call["columns"]) for call in
                       sandbox.guest.asked("resize")]  # fmt: skip
            assert resized == ([("c2", 2, 24, 80), ("c2", 3, 24, 80)] if size else [])

    run(story)


def test_notes_about_nodes_are_those_of_the_host(tmp_path: Path) -> None:
    """The guest gets a specification with its own numbers."""
    devices = [
        {"path": "/dev/vfio/5", "type": "c", "major": 511, "minor": 7, "fileMode": 0o600},
        {"path": "/dev/iommu", "type": "c", "major": 10, "minor": 126},
        {"path": "/dev/userfaultfd", "type": "c", "major": 10, "minor": 60},
    ]
    rules = [{"allow": True, "type": "c", "major": 511, "minor": 7, "access": "rw"}]
    spec = {"process": {"args": ["x"]}, "linux": {"devices": devices, "resources": {"devices": rules}}}
    nodes = [group_node(5, major=511, minor=7), file_node(None, path="/dev/iommu", major=10, minor=126)]

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            sandbox.guest.answers["misc_numbers"] = [{"major": 10, "minor": 61}]
            await sandbox.announce(f"c2/{KEY}")
            notes = await sandbox.create(sandbox.joining(spec=spec, nodes=nodes, named=[(10, 60, "userfaultfd")]))
            assert notes == [
                ["debug", "/dev/vfio/5 is /dev/vfio/3 in the guest: both paths exist"],
                ["warning", "/dev/iommu: the guest's kernel has no VFIO device files: use /dev/vfio/vfio instead"],
            ]
            linux = sandbox.guest.asked("create")[-1]["spec"]["linux"]
            group = {"type": "c", "major": BOUND["major"], "minor": BOUND["minor"]}
            assert linux["devices"] == [
                {"path": "/dev/vfio/3", "fileMode": 0o600, **group},
                {"path": "/dev/vfio/5", "fileMode": 0o600, **group},
                {"path": "/dev/userfaultfd", "type": "c", "major": 10, "minor": 61},
            ]
            assert linux["resources"]["devices"] == [{"allow": True, "access": "rw", **group}]

    run(story)


def test_numbers_of_the_guests_own_drivers_are_not_translated(tmp_path: Path) -> None:
    """Their nodes may have the same numbers as a group and a disk of the host."""
    devices = [
        {"path": "/dev/vfio/7", "type": "c", "major": 511, "minor": 9},
        {"path": "/dev/sdb", "type": "b", "major": 8, "minor": 16},
    ]
    rules = [
        {"allow": True, "type": "c", "major": 511, "minor": 9, "access": "rw"},
        {"allow": True, "type": "b", "major": 8, "minor": 16, "access": "r"},
    ]
    spec = {"process": {"args": ["x"]}, "linux": {"devices": devices, "resources": {"devices": rules}}}
    native = [
        {"name": "accel0", "kind": "c", "major": 511, "minor": 9},
        {"name": "sda", "kind": "b", "major": 8, "minor": 16},
    ]

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            sandbox.guest.answers["bind_native"] = {"driver": "edu", "interfaces": [], "nodes": native}
            sandbox.guest.answers["bind_disk"] = {"major": 254, "minor": 0}
            groups = [EDU, NICS]
            slots = [slot for group in groups for slot in place(shape(group), sandbox.spares[groups.index(group) :])]
            plan = sandbox.joining(
                spec=spec, plugs=plug_steps(groups, slots, owner="c2"), nodes=[group_node(7, major=511, minor=9)],
                native={5: {"fileMode": 0o600}},
            )  # fmt: skip
            sandbox.sandbox.find("c1")._disks._open = lambda *_, **__: os.open("/dev/null", os.O_RDWR)
            disk = DiskPlan(major=8, minor=16, name="sdb", writable=False)
            await sandbox.announce(f"c2/{KEY}")
            await sandbox.create(msgspec.structs.replace(plan, disks=[disk]))
            linux = sandbox.guest.asked("create")[-1]["spec"]["linux"]
            assert [(each["path"], each["major"], each["minor"]) for each in linux["devices"]] == [
                ("/dev/vfio/3", 511, 0), ("/dev/vfio/7", 511, 0), ("/dev/sdb", 254, 0), ("/dev/accel0", 511, 9),
                ("/dev/sda", 8, 16),
            ]  # fmt: skip
            assert [
                (rule["type"], rule["major"], rule["minor"], rule["access"]) for rule in linux["resources"]["devices"]
            ] == [("b", 254, 0, "r"), ("c", 511, 0, "rw"), ("c", 511, 9, "rwm"), ("b", 8, 16, "rwm")]

    run(story)


@pytest.mark.parametrize("answer", [[["warning", "from the guest"]], {"a": "b"}, 7])
def test_creation_with_an_unusable_answer_is_undone(tmp_path: Path, answer: object) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            sandbox.guest.answers["create"] = answer
            proxy = await sandbox.announce(f"c2/{KEY}")
            with pytest.raises(VmError, match=r"^the guest's answer to create is unusable: Expected `null`, got "):
                await sandbox.create(sandbox.joining())
            assert await heard(proxy) == ("exit", {"code": LOST})
            sandbox.prove_alone()

    run(story)


@pytest.mark.parametrize("moment", ["set_sysctls", "create"])
def test_failed_creation_ends_the_proxy_and_is_undone(tmp_path: Path, moment: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            sandbox.guest.answers[moment] = VmError("agent: no")
            proxy = await sandbox.announce(f"c2/{KEY}")
            with pytest.raises(VmError, match="agent: no"):
                await sandbox.create(sandbox.joining(sysctls={"net.x": "1"}))
            assert await heard(proxy) == ("exit", {"code": LOST})
            sandbox.prove_alone()
            # Later frames of the guest for it are dropped.
            if moment == "create":
                sandbox.guest.send(encode(2 * STREAMS + 1, DATA, b"late"))
                sandbox.guest.tell("exit", process=2, code=0)
            await settle()
            assert not sandbox.machine.link.ended.done()

    run(story)


def test_container_that_ends_before_its_creation_is_answered_is_undone(tmp_path: Path) -> None:
    """The answer does not bring it back: only a hostile agent sends one."""

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            sandbox.guest.held["create"] = asyncio.Event()
            proxy = await sandbox.announce(f"c2/{KEY}")
            creating = asyncio.create_task(sandbox.create(sandbox.joining()))
            await until(lambda: len(sandbox.guest.asked("create")) == 2)
            sandbox.guest.tell("exit", process=2, code=3)
            assert await heard(proxy) == ("exit", {"code": 3})
            assert sandbox.state()["status"] == "stopped"
            sandbox.guest.held["create"].set()
            with pytest.raises(StateError, match=r"^container c2 ended while it was created$"):
                await creating
            sandbox.prove_alone()

    run(story)


def test_failed_exec_ends_its_proxy(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxies = sandbox.sandbox.processes.proxies
            await sandbox.join(plugs=[])
            await sandbox.call("c2", "start")
            sandbox.guest.answers["exec"] = StateError("no such program")
            proxy = await sandbox.announce("c2/k")
            with pytest.raises(StateError, match="no such program"):
                await sandbox.call("c2", "exec", key="k", process={"args": ["x"]})
            assert await heard(proxy) == ("exit", {"code": LOST})
            assert proxies("c2") == [os.getpid()]
            del sandbox.guest.answers["exec"]
            proxy = await sandbox.announce("c2/k")
            await sandbox.call("c2", "exec", key="k", process={"args": ["x"]})
            assert (proxies("c1"), proxies("c2")) == ([os.getpid()], [os.getpid()] * 2)
            sandbox.guest.tell("exit", process=4, code=3)
            assert await heard(proxy) == ("exit", {"code": 3})
            assert sandbox.sandbox.find("c2").status == "running", "only the exec process has ended"

    run(story)


def test_exec_environment_has_guest_addresses(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            plan = sandbox.joining()
            plugs = [msgspec.structs.replace(plug, host="0000:3b:00.0") for plug in plan.plugs]
            await sandbox.join(plugs=plugs)
            await sandbox.call("c2", "start")
            await sandbox.announce("c2/k")
            process = {"args": ["x"], "env": ["PCIDEVICE_X=0000:3b:00.0", "A=b"]}
            await sandbox.call("c2", "exec", key="k", process=process)
            assert sandbox.guest.asked("exec")[0]["spec"]["env"] == ["PCIDEVICE_X=0000:02:00.0", "A=b"]

    run(story)


class FakeCgroup(HostCgroup):
    """Accepts every process and returns a warning."""

    def place(self, process: Process, **_: Any) -> list[str]:
        return [f"{process.pid} is placed"]

    def record_oom(self) -> None: ...


@pytest.mark.parametrize("path", ["/x", ""])
def test_proxy_is_placed_in_its_cgroup(tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as pod_sandbox:
            plan = pod_sandbox.joining(plugs=[], cgroup=CgroupPlan(path=path))
            store, sandbox = Store(pod_sandbox.store.root, "c2"), pod_sandbox.sandbox
            cgroup = FakeCgroup(plan.cgroup, store.path)
            joined = Container(
                plan, store, sandbox.processes, sandbox.claims, cgroup, key=KEY, seconds=1.0, sandbox="c1"
            )
            proxy = await pod_sandbox.announce(f"c2/{KEY}")
            warning = [("warning", f"{os.getpid()} is placed")] if path else []
            assert await joined.create({}) == warning
            await joined.start()
            other = await pod_sandbox.announce("c2/k")
            await joined.execute("k", {"args": ["x"]}, Inherited())
            assert capsys.readouterr().err == "".join(f"container c2: {text}\n" for _, text in warning)
            pod_sandbox.guest.tell("exit", process=2, code=0)
            await joined.stopped.wait()
            joined.end()
            placed: list[Any] = [("placed", {})] if path else []
            assert await events(proxy) == [*placed, ("exit", {"code": 0})]
            assert await events(other) == [*placed, ("exit", {"code": KILLED})]

    run(story)


@pytest.mark.parametrize(("ended", "code"), [(False, LOST), (True, KILLED)])
def test_exec_process_ends_with_the_container(tmp_path: Path, ended: bool, code: int) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(plugs=[])
            await sandbox.call("c2", "start")
            proxy = await sandbox.announce("c2/k")
            await sandbox.call("c2", "exec", key="k", process={"args": ["x"]})
            if ended:
                sandbox.guest.tell("exit", process=2, code=0)
                await sandbox.sandbox.find("c2").stopped.wait()
            sandbox.sandbox.end()
            assert await heard(proxy) == ("exit", {"code": code})

    run(story)


def test_output_is_delivered_before_the_exit_code(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.join(plugs=[])
            sandbox.guest.send(encode(2 * STREAMS + 1, DATA, b"hello"))
            sandbox.guest.send(encode(2 * STREAMS + 1, EOF))
            sandbox.guest.tell("exit", process=2, code=0)
            frames = await proxy.read()
            assert frames.startswith(encode(STREAMS + 1, DATA, b"hello") + encode(STREAMS + 1, EOF))
            assert b'"code":0' in frames

    run(story)


def test_creation_without_proxy_fails_after_20_seconds(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            began = asyncio.get_running_loop().time()
            with pytest.raises(VmError, match="the proxy process did not connect within 20 s"):
                await sandbox.create(sandbox.joining())
            assert asyncio.get_running_loop().time() - began >= 20
            sandbox.prove_alone()
            assert await heard(await sandbox.announce(f"c2/{KEY}")) == ("exit", {"code": LOST})

    run(story)


def test_failure_of_the_proxy_is_the_creations_error(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.announce(f"c2/{KEY}", failure="no mounts")
            with pytest.raises(
                Exception, match="cannot assemble the container's files for programs of the host: no mounts"
            ):
                await sandbox.create(sandbox.joining())
            assert await heard(proxy) == ("exit", {"code": LOST})
            sandbox.prove_alone()

    run(story)
