"""Nodes of attached groups, limits of the answers that are accepted from the guest, and limits of a VM's ports."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from hawse.errors import DeviceError, StateError, VmError
from hawse.monitor.devices.attachments import Attachments
from hawse.monitor.devices.claims import Claims
from hawse.plan.model import ContainerPlan
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.node import VfioNode, container_node, file_node, group_node
from hawse.vm.ports import plan_ports
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.groups import BOUND, EDU, attachment, plan

FILE, IOMMU_NUMBERS = {"number": 2, "major": 509, "minor": 4}, {"major": 10, "minor": 258}
FILES = BOUND | {"file": FILE, "iommu": IOMMU_NUMBERS}
IOMMU = file_node(None, path="/dev/iommu", major=10, minor=126)


class Machine:
    """The attachments of a container in a running VM."""

    def __init__(self, container_plan: ContainerPlan, *answers: dict[str, Any], **others: Any) -> None:
        bound = list(answers) if len(answers) > 1 else answers[0]
        self.qmp, self.claims = FakeQmp(), Claims(plan().ports)
        self.link = FakeLink({"bind_vfio": bound, "add_nodes": None, "remove_nodes": None} | others)
        self.attachments = Attachments(container_plan, self.claims, seconds=1.0)

    async def begin(self) -> None:
        await self.attachments.begin(self.qmp, self.link)  # type: ignore[arg-type]


def device_file(number: int, device: str, *, group: int = 5) -> VfioNode:
    return replace(file_node(group, path=f"/dev/vfio/devices/vfio{number}", major=0, minor=0), device=device)


@pytest.mark.parametrize(
    ("groups", "nodes", "wants"),
    [
        ([], [container_node()], False),
        ([], [IOMMU], True),
        ([EDU], [group_node(5), device_file(5, "vfio-5-0")], False),
    ],
)
def test_container_gets_device_files_when_it_has_dev_iommu(
    groups: list[EmulatedGroup], nodes: list[VfioNode], wants: bool
) -> None:
    async def story() -> None:
        machine = Machine(replace(plan(*groups).container, nodes=nodes), FILES)
        await machine.begin()
        assert machine.attachments.wants_files == wants
        await machine.attachments.attach(attachment(EmulatedGroup(9, ("edu",)), machine.claims.spares))
        paths = [node["path"] for node in machine.link.calls[-1][1]["nodes"]]
        assert ("/dev/iommu" in paths) == wants
        assert machine.link.seconds["add_nodes"] == 61

    virtual_time.run(story())


def test_nodes_of_a_detached_group_are_forgotten() -> None:
    """The group can be attached again at another path; a node that is named twice exists once."""

    async def story() -> None:
        machine = Machine(plan().container, FILES)
        await machine.begin()
        [entry] = await machine.attachments.attach(attachment(EDU, machine.claims.spares))
        assert entry["nodes"] == ["/dev/vfio/3", "/dev/vfio/5"]
        await machine.attachments.detach(5, force=False)
        assert machine.link.calls[-1][1]["devices"] == []
        more = attachment(EDU, machine.claims.spares)
        [node] = more.nodes
        other = replace(node, path="/dev/vfio/x")
        [entry] = await machine.attachments.attach(replace(more, nodes=[other, other]))
        assert list(dict.fromkeys(entry["nodes"])) == ["/dev/vfio/3", "/dev/vfio/x"]
        assert machine.link.calls[-1][1]["devices"] == [entry]

    virtual_time.run(story())


def test_detach_reports_the_devices_that_are_left() -> None:
    async def story() -> None:
        other = EmulatedGroup(9, ("edu",))
        groups = plan(EDU, other).container
        nodes = [*groups.nodes, IOMMU, *(device_file(n, f"vfio-{n}-0", group=n) for n in (5, 9))]
        both = replace(groups, nodes=nodes)
        machine = Machine(both, FILES, FILES | {"group": 4, "file": {"number": 1, "major": 509, "minor": 5}})
        await machine.begin()
        await machine.attachments.detach(5, force=True)
        call = machine.link.calls[-1][1]
        assert machine.link.seconds["remove_nodes"] == 61, "the guest may take a second"
        assert (call["force"], call["group"], call["seconds"], call["container"]) == (True, 3, 1.0, "c1")
        assert [entry["host"]["group"] for entry in call["devices"]] == [9]
        assert [entry["host"]["group"] for entry in machine.attachments.state_entries()] == [9]
        assert machine.attachments.state_entries()[0]["nodes"][-2:] == [
            "/dev/vfio/devices/vfio1",
            "/dev/vfio/devices/vfio9",
        ]
        assert [node.path for node in machine.attachments.nodes] == [
            "/dev/vfio/9", "/dev/iommu", "/dev/vfio/devices/vfio9"
        ]  # fmt: skip
        with pytest.raises(Exception, match="group 5 is not attached") as caught:
            await machine.attachments.detach(5, force=False)
        assert getattr(caught.value, "hint", "") == "attached: 9"
        await machine.attachments.end()
        assert (machine.qmp.plugged, machine.attachments.state_entries(), len(machine.claims.spares)) == (set(), [], 4)

    virtual_time.run(story())


def test_end_before_the_creation_releases_the_ports() -> None:
    async def story() -> None:
        machine = Machine(plan(EDU).container, BOUND)
        assert len(machine.claims.spares) == 3
        await machine.attachments.end()
        assert (machine.qmp.commands, len(machine.claims.spares)) == ([], 4)

    virtual_time.run(story())


@pytest.mark.parametrize("call", ["detach", "end", "attach"])
def test_device_that_stays_keeps_its_port(call: str) -> None:
    """The container no longer claims the device, but its port stays in use: QEMU still has the device."""

    async def story() -> None:
        groups = [] if call == "attach" else [EDU]
        machine = Machine(plan(*groups).container, BOUND, add_nodes=VmError("agent: no"))
        machine.qmp = FakeQmp(patience=10**9)
        await machine.begin()
        words = "agent: no" if call == "attach" else "emulated edu of group 5: the guest does not release it within 1 s"
        with pytest.raises((DeviceError, VmError), match=words):
            if call == "detach":
                await machine.attachments.detach(5, force=False)
            elif call == "end":
                await machine.attachments.end()
            else:
                await machine.attachments.attach(attachment(EDU, machine.claims.spares))
        assert machine.qmp.plugged == {"vfio-5-0"}
        assert len(machine.claims.spares) == 3
        assert [plug.group for plug in machine.claims.plugs] == ([5] if call == "detach" else [])

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"group": 2**20 - 1, "major": 0, "minor": 2**20 - 1}, ""),
        ({"group": 2**20}, "group: Expected `int` <= 1048575"),
        ({"group": 2**64}, "group: Expected `int` <= 1048575"),
        ({"minor": -1}, "minor: Expected `int` >= 0"),
        ({"minor": -(2**64)}, "minor: Expected `int` >= 0"),
        ({"major": "511"}, "major: Expected `int`, got `str`"),
        ({"major": None}, "major: Expected `int`, got `null`"),
        ({"major": 511.0}, "major: Expected `int`, got `float`"),
        ({"file": None, "iommu": IOMMU_NUMBERS}, ""),
        ({"file": FILE, "iommu": None}, ""),
        ({"file": FILE, "iommu": {"major": 10}}, "iommu: Object missing required field `minor`"),
        ({"file": FILE, "iommu": [10, 258]}, "iommu: Expected `object | null`, got `array`"),
        ({"file": {"number": 2, "major": 509}, "iommu": IOMMU_NUMBERS}, "file: Object missing required field `minor`"),
        ({"file": FILE, "iommu": {"major": 10, "minor": 2**20}}, "iommu.minor: Expected `int` <= 1048575"),
        ({"bars": [2**63 - 1]}, ""),
        ({"bars": [2**63]}, r"bars[0]: Expected `int` <= 9223372036854775807"),
        ({"bars": [0, 2**70]}, r"bars[1]: Expected `int` <= 9223372036854775807"),
        ({"bars": [0] * 7}, "bars: Expected `array` of length <= 6"),
        ({"bars": None}, "bars: Expected `array`, got `null`"),
    ],
)
def test_numbers_of_the_guest_are_checked(changes: dict[str, Any], refusal: str) -> None:
    async def story() -> None:
        answer = BOUND | changes
        machine = Machine(replace(plan(EDU).container, nodes=[IOMMU, group_node(5)]), answer)
        if refusal:
            with pytest.raises(VmError) as caught:
                await machine.begin()
            assert caught.value.message.endswith(f" of group 5: the guest's answer to bind_vfio is unusable: {refusal}")
            assert caught.value.hint
            return
        await machine.begin()
        assert machine.attachments.state_entries()[0]["guest"]["group"] == answer["group"]
        [node, _] = machine.attachments.nodes
        assert node == replace(IOMMU, guest_path="/dev/iommu"), "the guest's kernel has no device files"
        assert node.guest_numbers is None

    virtual_time.run(story())


def test_all_ports_can_be_taken() -> None:
    groups = [EmulatedGroup(number, ("edu",)) for number in range(1, 6)]
    planned = plan(*groups[:4])
    claims = Claims(planned.ports)
    plugs = planned.container.plugs
    claims.claim(plugs, owner="c1")
    assert claims.spares == []
    assert claims.take_port() is None
    with pytest.raises(StateError, match="the port for it was taken meanwhile"):
        claims.claim([replace(plugs[0], group=9, device="vfio-9-0")], owner="c1")
    claims.release(plugs[:1], owner="another")
    assert claims.spares == []
    claims.release(plugs[:1], owner="c1")
    assert [port.takes_at for port in claims.spares] == [plugs[0].bus]


def test_interfaces_take_ports_without_a_bridge() -> None:
    ports = plan_ports([], least=4, bridges=3).ports
    claims = Claims(ports)
    [free] = [port for port in ports if not port.bridge]
    assert claims.take_port() == free
    assert claims.take_port() is None
    assert len(claims.spares) == 3
