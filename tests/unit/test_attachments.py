"""Attaching and detaching with a failure at each step: no device stays plugged without a record."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hawse.errors import DeviceError, HawseError, NotFoundError, RefusedError, StateError, VmError
from hawse.monitor.devices.attachments import Attachments
from hawse.monitor.devices.claims import Claims
from hawse.plan.model import ContainerPlan
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.node import file_node
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink, FakeQmp, fails_at
from tests.support.groups import BOUND, EDU, NICS, attachment, plan
from tests.support.plans import changed


class Sandbox:
    """The attachments of a running sandbox, with a QEMU and a guest that a test chooses."""

    def __init__(self, qmp: FakeQmp, answers: dict[str, Any], *groups: EmulatedGroup, seconds: float = 1.0) -> None:
        self.qmp = qmp
        self.link = FakeLink({"bind_vfio": BOUND, "add_nodes": None, "remove_nodes": None} | answers)
        planned = plan(*groups, seconds=seconds)
        self.claims = Claims(planned.ports)
        self.attachments = Attachments(planned.container, self.claims, seconds=seconds)

    async def begin(self) -> None:
        await self.attachments.begin(self.qmp, self.link)  # type: ignore[arg-type]

    async def attach(self, group: EmulatedGroup) -> list[dict[str, Any]]:
        return await self.attachments.attach(attachment(group, self.claims.spares))


def live(path: str, major: int, minor: int, mode: int, uid: int, gid: int) -> dict[str, Any]:
    """A node, as in the parameters of the calls add_nodes and remove_nodes."""
    return {"path": path, "major": major, "minor": minor, "mode": mode, "uid": uid, "gid": gid}


def test_group_is_attached_and_detached() -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {})
        await box.begin()
        [entry] = await box.attach(EDU)
        assert entry["guest"] == {"address": "0000:02:00.0", "group": 3}
        assert [name for name, _ in box.link.calls] == ["bind_vfio", "add_nodes"]
        assert box.link.calls[1][1]["nodes"] == [
            live("/dev/vfio/vfio", 10, 196, 0o666, 0, 0),
            live("/dev/vfio/3", 511, 0, 0o660, 1, 2),
            live("/dev/vfio/5", 511, 0, 0o660, 1, 2),
        ]
        assert len(box.claims.spares) == 3
        await box.attachments.detach(5, force=False)
        assert (box.qmp.plugged, box.attachments.state_entries(), len(box.claims.spares)) == (set(), [], 4)

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("number", "error"),
    [(n, kind("netdev_add: no")) for n in range(4) for kind in (RefusedError, VmError)],
)
def test_failed_command_undoes_earlier_commands(number: int, error: HawseError) -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(refuse=fails_at(number, error)), {})
        await box.begin()
        with pytest.raises(DeviceError, match="emulated e1000e of group 7: QEMU refuses it: netdev_add: no"):
            await box.attach(NICS)
        assert (box.qmp.plugged, box.attachments.state_entries(), len(box.claims.spares)) == (set(), [], 4)
        await box.attach(NICS)

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"bind_vfio": [BOUND, DeviceError("0000:02:00.0: refuses")]}, "in the guest 0000:02:00.0: refuses"),
        (
            {"bind_vfio": [BOUND, BOUND | {"group": 4}]},
            "is in the guest's group 4, but others of host group 7 are in 3",
        ),
        ({"bind_vfio": BOUND | {"group": "../3"}}, "of group 7: the guest's answer to bind_vfio is unusable: group: "),
        ({"bind_vfio": BOUND | {"group": True}}, "of group 7: the guest's answer to bind_vfio is unusable: group: "),
        ({"bind_vfio": None}, "of group 7: the guest's answer to bind_vfio is unusable: Expected `object`, got `null`"),
        (
            {"bind_vfio": [BOUND, VmError("the agent in the guest did not answer bind_vfio within 35 s")]},
            "^emulated e1000e of group 7: the agent in the guest did not answer bind_vfio",
        ),
        ({"add_nodes": {}}, "the guest's answer to add_nodes is unusable: Expected `null`, got `object`"),
        (
            {"add_nodes": StateError("/dev/vfio/7: another file exists")},
            "another file exists",
        ),
        ({"add_nodes": VmError("the agent in the guest did not answer")}, "did not answer"),
    ],
)
def test_group_is_unplugged_if_the_guest_fails(answers: dict[str, Any], words: str) -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), answers)
        await box.begin()
        with pytest.raises(HawseError, match=words):
            await box.attach(NICS)
        assert (box.qmp.plugged, box.attachments.state_entries(), len(box.claims.spares)) == (set(), [], 4)

    virtual_time.run(story())


def test_refusal_of_the_guest_is_reported_and_the_port_stays_in_use() -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(patience=10**9), {}, EDU, seconds=0.1)
        await box.begin()
        with pytest.raises(DeviceError, match=r"edu of group 5: the guest does not release it within 0\.1 s"):
            await box.attachments.detach(5, force=False)
        assert [entry["host"]["group"] for entry in box.attachments.state_entries()] == [5]
        assert len(box.claims.spares) == 3

    virtual_time.run(story())


@pytest.mark.parametrize("refusal", [DeviceError("group 3 of the guest is in use"), VmError("no answer")])
def test_group_that_the_guest_keeps_stays_attached(refusal: HawseError) -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {"remove_nodes": refusal}, EDU)
        await box.begin()
        with pytest.raises(type(refusal)):
            await box.attachments.detach(5, force=False)
        assert box.qmp.plugged == {"vfio-5-0"}
        assert len(box.attachments.state_entries()) == 1

    virtual_time.run(story())


def test_groups_that_the_guest_has_merged_are_refused() -> None:
    """A process that has opened one of the groups would control the devices of both."""

    async def story() -> None:
        box = Sandbox(FakeQmp(), {}, EDU, NICS)
        with pytest.raises(
            DeviceError, match="emulated e1000e of host group 7: in the guest's group 3, as is host group 5"
        ):
            await box.begin()

    virtual_time.run(story())


def test_cold_plugged_device_is_not_plugged_again_and_can_be_detached() -> None:
    async def story() -> None:
        planned = plan(NICS)
        cold = [msgspec.structs.replace(step, cold=True) for step in planned.container.plugs]
        box = Sandbox(FakeQmp(), {})
        box.qmp.plugged = {step.device for step in cold}
        box.attachments = Attachments(changed(planned, plugs=cold).container, Claims(planned.ports), seconds=1)
        await box.begin()
        assert box.qmp.commands == []
        await box.attachments.detach(7, force=False)
        assert box.qmp.plugged == set()
        assert [name for command, name in box.qmp.commands if command == "netdev_del"] == [
            f"net-{step.device}" for step in cold
        ]

    virtual_time.run(story())


def test_port_stays_in_use_for_the_present_owner_of_the_group() -> None:
    """A container of a pod detaches a group, another container attaches it, and then the first container ends."""

    async def story() -> None:
        box = Sandbox(FakeQmp(), {}, EDU)
        first = list(box.attachments.plugs)
        await box.begin()
        await box.attachments.detach(5, force=False)
        await box.attach(EDU)
        box.claims.release(first, owner="another")
        assert [plug.group for plug in box.claims.plugs] == [5]
        assert len(box.claims.spares) == 3

    virtual_time.run(story())


def test_group_of_two_containers_is_plugged_once_and_unplugged_with_the_last() -> None:
    """An init container of a pod has ended but still exists when the next container with its device is created."""

    async def story() -> None:
        box = Sandbox(FakeQmp(), {}, EDU)
        await box.begin()
        container = plan(EDU).container
        container = msgspec.structs.replace(
            container, id="c2", plugs=[msgspec.structs.replace(plug, shared=True) for plug in container.plugs]
        )
        second = Attachments(container, box.claims, seconds=1)
        done = list(box.qmp.commands)
        await second.begin(box.qmp, box.link)  # type: ignore[arg-type]
        assert box.qmp.commands == done
        assert second.state_entries() == box.attachments.state_entries()
        await box.attachments.end()
        assert box.qmp.plugged == {"vfio-5-0"}
        await second.detach(5, force=False)
        assert box.link.calls[-1][1]["group"] == 3, "no other container has it any more: its users are searched"
        assert (box.qmp.plugged, len(box.claims.spares)) == (set(), 4)

    virtual_time.run(story())


def test_group_of_another_container_stays_attached() -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {}, EDU)
        await box.begin()
        [plug] = plan(EDU).container.plugs
        box.claims.claim([msgspec.structs.replace(plug, shared=True)], owner="c2")
        await box.attachments.detach(5, force=True)
        assert box.link.calls[-1][1]["group"] is None
        assert box.qmp.plugged == {"vfio-5-0"}

    virtual_time.run(story())


def test_group_that_is_being_detached_is_not_shared() -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {}, EDU)
        await box.begin()
        shared = [msgspec.structs.replace(plug, shared=True) for plug in box.attachments.plugs]
        with box.claims.exclusive(box.attachments.plugs, owner="c1") as alone:
            assert alone == box.attachments.plugs
            assert box.claims.shareable == []
            with pytest.raises(StateError, match="group 5 was detached from the virtual machine meanwhile"):
                box.claims.claim(shared, owner="c2")
        await box.attachments.end()
        with pytest.raises(StateError, match="group 5 was detached from the virtual machine meanwhile"):
            box.claims.claim(shared, owner="c2")

    virtual_time.run(story())


def test_error_says_whether_a_group_is_attached() -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {}, EDU)
        with pytest.raises(StateError, match="still being created"):
            await box.attach(NICS)
        await box.begin()
        with pytest.raises(StateError, match="group 5 is attached already"):
            await box.attach(EDU)
        with pytest.raises(NotFoundError, match="group 9 is not attached"):
            await box.attachments.detach(9, force=False)
        await box.attach(NICS)
        other = EmulatedGroup(9, ("edu",))
        taken = [port for port in plan().ports if port.name == box.attachments.plugs[-1].bus]
        with pytest.raises(StateError, match="the port for it was taken meanwhile"):
            await box.attachments.attach(attachment(other, taken))

    virtual_time.run(story())


FILE = {"number": 2, "major": 509, "minor": 4}
FILES = BOUND | {"file": FILE, "iommu": {"major": 10, "minor": 258}}


def with_files(groups: ContainerPlan, *, iommu: bool = True) -> ContainerPlan:
    """The plan of a container that requests device files as well."""
    nodes = [file_node(None, path="/dev/iommu", major=10, minor=126)] if iommu else []
    for plug in groups.plugs:
        node = file_node(plug.group, path=f"/dev/vfio/devices/vfio{plug.group}", major=0, minor=plug.group)
        nodes.append(msgspec.structs.replace(node, device=plug.device))
    return msgspec.structs.replace(groups, nodes=[*groups.nodes, *nodes])


@pytest.mark.parametrize("answer", [FILES, BOUND])
def test_device_files_have_the_paths_of_the_guest(answer: dict[str, Any]) -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {"bind_vfio": answer}, EDU)
        box.claims = Claims(plan().ports)
        box.attachments = Attachments(with_files(plan(EDU).container), box.claims, seconds=1.0)
        await box.begin()
        has = "file" in answer
        assert [
            (node.path, node.host_numbers, node.guest_group, node.guest_numbers, node.guest_path)
            for node in box.attachments.nodes
        ] == [
            ("/dev/vfio/5", (0, 5), 3, (511, 0), "/dev/vfio/3"),
            ("/dev/iommu", (10, 126), None, (10, 258) if has else None, "/dev/iommu"),
            ("/dev/vfio/devices/vfio5", (0, 5), 3, (509, 4) if has else None,
             "/dev/vfio/devices/vfio2" if has else "/dev/vfio/devices/vfio5"),
        ]  # fmt: skip
        await box.attachments.detach(5, force=False)
        gone = [node["path"] for node in box.link.calls[-1][1]["nodes"]]
        files = ["/dev/vfio/devices/vfio2", "/dev/vfio/devices/vfio5"] if has else []
        assert gone == ["/dev/vfio/3", "/dev/vfio/5", *files]

    virtual_time.run(story())


def test_container_with_dev_iommu_gets_device_files_of_attached_groups() -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {"bind_vfio": FILES})
        assert not box.attachments.wants_files
        box.attachments = Attachments(with_files(plan().container), box.claims, seconds=1.0)
        assert box.attachments.wants_files
        await box.begin()
        more = attachment(EDU, box.claims.spares)
        file = file_node(5, path="/dev/vfio/devices/vfio7", major=0, minor=5)
        file = msgspec.structs.replace(file, device=more.plugs[0].device)
        await box.attachments.attach(msgspec.structs.replace(more, nodes=[*more.nodes, file]))
        assert box.link.calls[-1][1]["nodes"] == [
            live("/dev/vfio/vfio", 10, 196, 0o666, 0, 0),
            live("/dev/iommu", 10, 258, 0o660, 1, 2),
            live("/dev/vfio/3", 511, 0, 0o660, 1, 2),
            live("/dev/vfio/5", 511, 0, 0o660, 1, 2),
            live("/dev/vfio/devices/vfio2", 509, 4, 0o660, 1, 2),
            live("/dev/vfio/devices/vfio7", 509, 4, 0o660, 1, 2),
        ]

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("file", "refusal"),
    [
        ([1, 2, 3], "file: Expected `object | null`, got `array`"),
        ("vfio0", "file: Expected `object | null`, got `str`"),
        ({"0": 1}, "file: Object missing required field `number`"),
        ({"number": 1, "major": 2}, "file: Object missing required field `minor`"),
        (FILE | {"minor": "3"}, "file.minor: Expected `int`, got `str`"),
        (FILE | {"number": -1}, "file.number: Expected `int` >= 0"),
        (FILE | {"number": 2**64}, "file.number: Expected `int` <= 1048575"),
        (FILE | {"number": True}, "file.number: Expected `int`, got `bool`"),
        (FILE | {"number": "\ud800"}, "a name or a text is not Unicode"),
        (FILE | {"\ud800": 1}, "a name or a text is not Unicode"),
    ],
)
def test_invalid_report_about_device_files_is_refused(file: object, refusal: str) -> None:
    async def story() -> None:
        box = Sandbox(FakeQmp(), {"bind_vfio": FILES | {"file": file}}, EDU)
        with pytest.raises(VmError) as caught:
            await box.begin()
        assert caught.value.message.endswith(f" of group 5: the guest's answer to bind_vfio is unusable: {refusal}")

    virtual_time.run(story())
