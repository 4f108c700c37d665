"""Calls to the guest when a container or an exec process is created, and the exit codes of their proxies.

Of :mod:`hawse.monitor.container` and :mod:`hawse.monitor.processes.processes`, through the socket of the monitor.
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
from hawse.monitor.processes.processes import KILLED, LOST
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.oci.process.inherited import Inherited
from hawse.plan.model import DiskPlan
from hawse.planner.devices.vfio import plug_steps, shape
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
        async with pod(tmp_path) as made:
            first = len(made.guest.calls)
            await made.join(memory={"shm": 4096}, sysctls={"net.x": "1"}, hugepages=[(2048, 3)])
            asked = made.guest.calls[first:]
            assert [method for method, _ in asked] == [
                "bind_vfio", "reserve_hugepages", "share_memory", "set_sysctls", "create"
            ]  # fmt: skip
            assert asked[1][1] == {"kib": 2048, "count": 3}
            assert asked[2][1] == {"name": "shm", "size": 4096}
            assert asked[3][1] == {"values": {"net.x": "1"}}
            call = asked[4][1]
            assert (call["container"], call["process"], call["descriptors"], call["joins"]) == ("c2", 2, [], {})
            assert call["spec"] == {"process": {"args": ["x"]}}
            assert [entry["guest"]["group"] for entry in call["devices"]] == [BOUND["group"]]
            assert (call["binds"], call["sockets"], call["notify"]) == ([], [], False)
            await made.call("c2", "delete")
            assert made.guest.asked("reserve_hugepages")[1:] == [{"kib": 2048, "count": -3}]

    run(story)


def test_plain_container_needs_only_create(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            await made.join(plugs=[])
            assert {method for method, _ in made.guest.calls} == {"create"}

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
        async with pod(tmp_path) as made:
            await made.announce(f"c2/{KEY}", **size)
            await made.create(made.joining(plugs=[], spec={"process": process}))
            assert made.guest.asked("create")[-1]["spec"]["process"].get("consoleSize") == shown
            await made.call("c2", "start")
            await made.announce("c2/k", **size)
            assert await made.call("c2", "exec", key="k", process=process) == os.getpid()
            [call] = made.guest.asked("exec")
            assert (call["container"], call["process"], call["spec"].get("consoleSize")) == ("c2", 3, shown)
            # It may have changed since the specification was sent.
            resized = [(call["container"], call["process"], call["rows"], call["columns"]) for call in
                       made.guest.asked("resize")]  # fmt: skip
            assert resized == ([("c2", 2, 24, 80), ("c2", 3, 24, 80)] if size else [])

    run(story)


def test_notes_about_nodes_are_those_of_the_host(tmp_path: Path) -> None:
    """The specification that the guest gets has its numbers."""
    devices = [
        {"path": "/dev/vfio/5", "type": "c", "major": 511, "minor": 7, "fileMode": 0o600},
        {"path": "/dev/iommu", "type": "c", "major": 10, "minor": 126},
        {"path": "/dev/userfaultfd", "type": "c", "major": 10, "minor": 60},
    ]
    rules = [{"allow": True, "type": "c", "major": 511, "minor": 7, "access": "rw"}]
    spec = {"process": {"args": ["x"]}, "linux": {"devices": devices, "resources": {"devices": rules}}}
    nodes = [group_node(5, major=511, minor=7), file_node(None, path="/dev/iommu", major=10, minor=126)]

    async def story() -> None:
        async with pod(tmp_path) as made:
            made.guest.answers["misc_numbers"] = [{"major": 10, "minor": 61}]
            await made.announce(f"c2/{KEY}")
            notes = await made.create(made.joining(spec=spec, nodes=nodes, named=[(10, 60, "userfaultfd")]))
            assert notes == [
                ["debug", "/dev/vfio/5 is /dev/vfio/3 in the guest: both paths exist"],
                ["warning", "/dev/iommu: the guest's kernel has no VFIO device files: use /dev/vfio/vfio instead"],
            ]
            linux = made.guest.asked("create")[-1]["spec"]["linux"]
            group = {"type": "c", "major": BOUND["major"], "minor": BOUND["minor"]}
            assert linux["devices"] == [
                {"path": "/dev/vfio/5", "fileMode": 0o600, **group},
                {"path": "/dev/vfio/3", "fileMode": 0o600, **group},
                {"path": "/dev/userfaultfd", "type": "c", "major": 10, "minor": 61},
            ]
            assert linux["resources"]["devices"] == [{"allow": True, "access": "rw", **group}]

    run(story)


def test_numbers_of_the_guests_own_drivers_are_not_translated(tmp_path: Path) -> None:
    """Their nodes may have the numbers that a group and a disk have on the host."""
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
        async with pod(tmp_path) as made:
            made.guest.answers["bind_native"] = {"driver": "edu", "interfaces": [], "nodes": native}
            made.guest.answers["bind_disk"] = {"major": 254, "minor": 0}
            groups = [EDU, NICS]
            slots = [slot for group in groups for slot in place(shape(group), made.spares[groups.index(group) :])]
            plan = made.joining(
                spec=spec, plugs=plug_steps(groups, slots, owner="c2"), nodes=[group_node(7, major=511, minor=9)],
                native={5: {"fileMode": 0o600}},
            )  # fmt: skip
            made.sandbox.find("c1")._disks._open = lambda *_, **__: os.open("/dev/null", os.O_RDWR)
            disk = DiskPlan(major=8, minor=16, name="sdb", writable=False)
            await made.announce(f"c2/{KEY}")
            await made.create(msgspec.structs.replace(plan, disks=[disk]))
            linux = made.guest.asked("create")[-1]["spec"]["linux"]
            assert [(each["path"], each["major"], each["minor"]) for each in linux["devices"]] == [
                ("/dev/vfio/7", 511, 0), ("/dev/vfio/3", 511, 0), ("/dev/sdb", 254, 0), ("/dev/accel0", 511, 9),
                ("/dev/sda", 8, 16),
            ]  # fmt: skip
            assert [
                (rule["type"], rule["major"], rule["minor"], rule["access"]) for rule in linux["resources"]["devices"]
            ] == [("b", 254, 0, "r"), ("c", 511, 0, "rw"), ("c", 511, 9, "rwm"), ("b", 8, 16, "rwm")]

    run(story)


@pytest.mark.parametrize("answer", [[["warning", "from the guest"]], {"a": "b"}, 7])
def test_creation_with_an_unusable_answer_is_undone(tmp_path: Path, answer: object) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            made.guest.answers["create"] = answer
            proxy = await made.announce(f"c2/{KEY}")
            with pytest.raises(VmError, match=r"^the guest's answer to create is unusable: Expected `null`, got "):
                await made.create(made.joining())
            assert await heard(proxy) == ("exit", {"code": LOST})
            made.prove_alone()

    run(story)


@pytest.mark.parametrize("moment", ["set_sysctls", "create"])
def test_failed_creation_ends_the_proxy_and_is_undone(tmp_path: Path, moment: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            made.guest.answers[moment] = VmError("agent: no")
            proxy = await made.announce(f"c2/{KEY}")
            with pytest.raises(VmError, match="agent: no"):
                await made.create(made.joining(sysctls={"net.x": "1"}))
            assert await heard(proxy) == ("exit", {"code": LOST})
            made.prove_alone()
            # What the guest still sends for it is dropped.
            if moment == "create":
                made.guest.send(encode(2 * STREAMS + 1, DATA, b"late"))
                made.guest.tell("exit", process=2, code=0)
            await settle()
            assert not made.machine.link.ended.done()

    run(story)


def test_container_that_ends_before_its_creation_is_answered_is_undone(tmp_path: Path) -> None:
    """The answer does not bring it back: only a hostile agent sends one."""

    async def story() -> None:
        async with pod(tmp_path) as made:
            made.guest.held["create"] = asyncio.Event()
            proxy = await made.announce(f"c2/{KEY}")
            creating = asyncio.create_task(made.create(made.joining()))
            await until(lambda: len(made.guest.asked("create")) == 2)
            made.guest.tell("exit", process=2, code=3)
            assert await heard(proxy) == ("exit", {"code": 3})
            assert made.state()["status"] == "stopped"
            made.guest.held["create"].set()
            with pytest.raises(StateError, match=r"^container c2 ended while it was created$"):
                await creating
            made.prove_alone()

    run(story)


def test_failed_exec_ends_its_proxy(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            proxies = made.sandbox.processes.proxies
            await made.join(plugs=[])
            await made.call("c2", "start")
            made.guest.answers["exec"] = StateError("no such program")
            proxy = await made.announce("c2/k")
            with pytest.raises(StateError, match="no such program"):
                await made.call("c2", "exec", key="k", process={"args": ["x"]})
            assert await heard(proxy) == ("exit", {"code": LOST})
            assert proxies("c2") == [os.getpid()]
            del made.guest.answers["exec"]
            proxy = await made.announce("c2/k")
            await made.call("c2", "exec", key="k", process={"args": ["x"]})
            assert (proxies("c1"), proxies("c2")) == ([os.getpid()], [os.getpid()] * 2)
            made.guest.tell("exit", process=4, code=3)
            assert await heard(proxy) == ("exit", {"code": 3})
            assert made.sandbox.find("c2").status == "running", "only the exec process has ended"

    run(story)


def test_exec_environment_has_guest_addresses(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            plan = made.joining()
            plugs = [msgspec.structs.replace(plug, host="0000:3b:00.0") for plug in plan.plugs]
            await made.join(plugs=plugs)
            await made.call("c2", "start")
            await made.announce("c2/k")
            process = {"args": ["x"], "env": ["PCIDEVICE_X=0000:3b:00.0", "A=b"]}
            await made.call("c2", "exec", key="k", process=process)
            assert made.guest.asked("exec")[0]["spec"]["env"] == ["PCIDEVICE_X=0000:02:00.0", "A=b"]

    run(story)


class FakeCgroup(HostCgroup):
    """Accepts every process and returns a warning."""

    def place(self, process: Process, **_: Any) -> list[str]:
        return [f"{process.pid} is placed"]

    def record_oom(self) -> None: ...


@pytest.mark.parametrize("path", ["/x", ""])
def test_proxy_is_placed_in_its_cgroup(tmp_path: Path, path: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            plan = made.joining(plugs=[], cgroup=CgroupPlan(path=path))
            store, sandbox = Store(made.store.root, "c2"), made.sandbox
            cgroup = FakeCgroup(plan.cgroup, store.path)
            joined = Container(
                plan, store, sandbox.processes, sandbox.claims, cgroup, key=KEY, seconds=1.0, sandbox="c1"
            )
            proxy = await made.announce(f"c2/{KEY}")
            warning = [("warning", f"{os.getpid()} is placed")] if path else []
            assert await joined.create({}) == warning
            await joined.start()
            other = await made.announce("c2/k")
            await joined.execute("k", {"args": ["x"]}, Inherited())
            made.guest.tell("exit", process=2, code=0)
            await joined.stopped.wait()
            joined.end()
            placed: list[Any] = [("placed", {})] if path else []
            assert await events(proxy) == [*placed, ("exit", {"code": 0})]
            assert await events(other) == [*placed, ("exit", {"code": KILLED})]

    run(story)


@pytest.mark.parametrize(("ended", "code"), [(False, LOST), (True, KILLED)])
def test_exec_process_ends_with_the_container(tmp_path: Path, ended: bool, code: int) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            await made.join(plugs=[])
            await made.call("c2", "start")
            proxy = await made.announce("c2/k")
            await made.call("c2", "exec", key="k", process={"args": ["x"]})
            if ended:
                made.guest.tell("exit", process=2, code=0)
                await made.sandbox.find("c2").stopped.wait()
            made.sandbox.end()
            assert await heard(proxy) == ("exit", {"code": code})

    run(story)


def test_output_is_delivered_before_the_exit_code(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            proxy = await made.join(plugs=[])
            made.guest.send(encode(2 * STREAMS + 1, DATA, b"hello"))
            made.guest.send(encode(2 * STREAMS + 1, EOF))
            made.guest.tell("exit", process=2, code=0)
            told = await proxy.read()
            assert told.startswith(encode(STREAMS + 1, DATA, b"hello") + encode(STREAMS + 1, EOF))
            assert b'"code":0' in told

    run(story)


def test_creation_without_proxy_fails_after_20_seconds(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            began = asyncio.get_running_loop().time()
            with pytest.raises(VmError, match="the proxy process did not connect within 20 s"):
                await made.create(made.joining())
            assert asyncio.get_running_loop().time() - began >= 20
            made.prove_alone()
            assert await heard(await made.announce(f"c2/{KEY}")) == ("exit", {"code": LOST})

    run(story)


def test_failure_of_the_proxy_is_the_creations_error(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            proxy = await made.announce(f"c2/{KEY}", failure="no mounts")
            with pytest.raises(
                Exception, match="cannot assemble the container's files for programs of the host: no mounts"
            ):
                await made.create(made.joining())
            assert await heard(proxy) == ("exit", {"code": LOST})
            made.prove_alone()

    run(story)
