"""`attach` and `detach`: the calls of the monitor, all groups or none, and how a failure is undone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.commands import attach
from hawse.errors import DeviceError, VmError
from hawse.plan.capacity import Room
from hawse.state.store import PAUSED, STOPPED
from hawse.vfio import obstacles
from hawse.vfio.groups import Function, HostGroup
from hawse.vm.ports import MIB, Port
from tests.support.command import Command
from tests.support.fake_monitor import FakeMonitor
from tests.support.ready import EMULATED, Ready


def spare(name: str, bus: int) -> Port:
    return Port(name, bus, True, 64 * MIB, 64 * MIB)


def entry(group: int, **more: Any) -> dict[str, Any]:
    """The monitor's data about a function."""
    entry = {"device": "emulated edu", "host": {"address": "", "group": group}, "nodes": [f"/dev/vfio/{group}"]}
    return entry | {"guest": {"address": "0000:01:00.0"}} | more


@pytest.fixture
def hawse(tmp_path: Path) -> Command:
    host = Ready(str(tmp_path))
    command = Command(str(tmp_path))
    command.configure(host.config(more=EMULATED))
    return command


@pytest.fixture
def monitor(hawse: Command) -> Iterator[FakeMonitor]:
    room = msgspec.to_builtins(Room(spares=[spare("port1", 1), spare("port2", 2)]))
    answers = {"room": room, "wants_files": False, "attach": lambda params: [entry(params["plugs"][0]["group"])]}
    with FakeMonitor(hawse.store("c1"), answers) as monitor:
        yield monitor


def sent(monitor: FakeMonitor, method: str) -> list[dict[str, Any]]:
    return [params for name, params in monitor.calls if name == method]


def test_groups_get_different_ports(hawse: Command, monitor: FakeMonitor) -> None:
    monitor.answers["attach"] = lambda params: [entry(params["plugs"][0]["group"], note="bus 3b is taken")]
    done = hawse("attach", "c1", "5", "7")
    assert (done.code, done.errors) == (0, "")
    assert done.output.splitlines() == [
        "emulated edu, group 5: in the guest 0000:01:00.0 (bus 3b is taken), /dev/vfio/5",
        "emulated edu, group 7: in the guest 0000:01:00.0 (bus 3b is taken), /dev/vfio/7",
    ]
    first, second = sent(monitor, "attach")
    assert [plug["bus"] for plug in (*first["plugs"], *second["plugs"])] == ["port1", "port2"]
    assert [node["path"] for node in first["nodes"]] == ["/dev/vfio/5"]
    assert (first["mode"], first["uid"], first["gid"]) == (0o666, 0, 0)


def test_devices_that_the_configuration_does_not_allow_are_not_bound(
    hawse: Command, monitor: FakeMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hawse would replace the driver that the functions have before."""
    nic = Function(address="0000:81:00.0", vendor=0x8086, device=0x10D3, class_code=0x020000, driver="ixgbe", bars=())
    taken: list[object] = []
    monkeypatch.setattr(attach, "find_groups", lambda *_: [HostGroup(9, (nic,))])
    monkeypatch.setattr(attach, "bind_functions", lambda addresses, _store: taken.append(addresses))
    monkeypatch.setattr(obstacles, "check", lambda _group, **_options: None)
    for allowed in ('"driver:vfio-pci"', '"0000:3b:*"', ""):
        hawse.configure(Ready(f"{tmp_path}/other").config(more=f"[devices]\nmanaged = true\nallow = [{allowed}]\n"))
        done = hawse("attach", "c1", "9")
        assert "group 9 cannot be passed: 0000:81:00.0 (8086:10d3) is not in the list of allowed devices" in done.errors
        shutil.rmtree(f"{tmp_path}/other")
    assert (taken, monitor.calls) == ([], [])


@pytest.mark.parametrize("accepted", [False, True])
def test_group_that_nothing_can_reset_is_bound_only_if_the_risk_is_accepted(
    hawse: Command, monitor: FakeMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepted: bool
) -> None:
    nic = Function(
        "0000:81:00.0", vendor=0x8086, device=0x10D3, class_code=0x020000, driver="ixgbe", bars=(), resets=()
    )
    taken: list[object] = []

    def take(addresses: list[str], _store: object) -> None:
        taken.append(addresses)
        raise DeviceError("as far as binding")

    monkeypatch.setattr(attach, "find_groups", lambda *_: [HostGroup(9, (nic,))])
    monkeypatch.setattr(attach, "bind_functions", take)
    more = f"[devices]\nmanaged = true\nunresettable = {str(accepted).lower()}\n"
    hawse.configure(Ready(f"{tmp_path}/other").config(more=more))
    done = hawse("attach", "c1", "9")
    refusal = "hawse: group 9 cannot be passed: nothing can reset 0000:81:00.0: "
    assert done.errors.startswith("hawse: as far as binding" if accepted else refusal)
    assert taken == ([["0000:81:00.0"]] if accepted else [])
    assert monitor.calls == []


@pytest.mark.parametrize("expected", [False, True])
def test_device_files_are_added_only_to_containers_with_dev_iommu(
    hawse: Command, monitor: FakeMonitor, expected: bool
) -> None:
    monitor.answers["wants_files"] = expected
    assert hawse("attach", "c1", "5").code == 0
    [call] = sent(monitor, "attach")
    files = [(node["path"], node["is_file"]) for node in call["nodes"]]
    assert files == [("/dev/vfio/5", False), *([("/dev/vfio/devices/vfio5", True)] if expected else [])]


def test_group_of_another_container_is_shared(hawse: Command, monitor: FakeMonitor) -> None:
    assert hawse("attach", "c1", "5").code == 0
    [plug] = sent(monitor, "attach")[0]["plugs"]
    monitor.answers["room"] = {"spares": [], "plugs": [plug]}
    assert hawse("attach", "c1", "5").code == 0
    assert sent(monitor, "attach")[1]["plugs"] == [plug | {"shared": True}]


def test_json_contains_the_answer_of_the_monitor(hawse: Command, monitor: FakeMonitor) -> None:
    done = hawse("attach", "--format", "json", "c1", "5")
    assert json.loads(done.output) == [entry(5)]
    assert len(monitor.calls) == 3


def test_no_group_is_attached_without_enough_free_ports(hawse: Command, monitor: FakeMonitor) -> None:
    monitor.answers["room"] = {"spares": [msgspec.to_builtins(spare("port1", 1))]}
    assert hawse("attach", "c1", "5", "7").code == 1
    assert sent(monitor, "attach") == []


@pytest.mark.parametrize(
    ("undoing", "message"),
    [
        (None, "the guest refuses it [end its user]\n"),
        (VmError("no answer"), "the guest refuses it; and then no answer [end its user]\n"),
    ],
)
def test_failure_of_one_group_detaches_the_others(
    hawse: Command, monitor: FakeMonitor, undoing: object, message: str
) -> None:
    answers = [[entry(5)], DeviceError("the guest refuses it", hint="end its user")]
    monitor.answers |= {"attach": lambda _: answers.pop(0), "detach": undoing}
    done = hawse("attach", "c1", "5", "7")
    assert (done.code, done.output, done.errors) == (1, "", f"hawse: {message}")
    assert sent(monitor, "detach") == [{"group": 5, "force": False, "container": "c1"}]


@pytest.mark.parametrize(
    ("state", "targets", "error"),
    [
        ({"status": STOPPED}, ["5"], "container not running: c1 is stopped"),
        ({"vfio": [entry(5)]}, ["7", "5"], "group 5 is attached to c1 already"),
        ({}, ["999999"], "IOMMU group 999999 does not exist"),
        ({}, ["five"], "'five' is neither a group's number nor a PCI address"),
        ({"annotations": {"hawse.device-mode": "other"}}, ["5"], "annotations: hawse.device-mode"),
    ],
)
def test_group_that_cannot_be_attached_is_refused_before_any_change(
    hawse: Command, monitor: FakeMonitor, state: dict[str, Any], targets: list[str], error: str
) -> None:
    monitor.change(**state)
    done = hawse("attach", "c1", *targets)
    assert done.code == 1
    assert done.errors.startswith(f"hawse: {error}")
    assert monitor.calls == []


@pytest.mark.parametrize("annotations", [None, {}, {"hawse.guest-devices": "[]"}])
def test_container_without_options_of_its_own(
    hawse: Command, monitor: FakeMonitor, annotations: dict[str, str] | None
) -> None:
    """hawse.guest-devices is the monitor's note in the state and not an option. Devices can be attached to a paused
    container."""
    monitor.change(annotations=annotations, status=PAUSED)
    assert hawse("attach", "c1", "5").code == 0


class TestDetach:
    """Targets are groups by number or functions by address."""

    def test_groups_are_detached_in_their_order(self, hawse: Command, monitor: FakeMonitor) -> None:
        monitor.change(vfio=[entry(5), entry(8) | {"host": {"address": "0000:3b:00.0", "group": 8}}])
        assert hawse("detach", "--force", "c1", "5", "3b:00.0").code == 0
        assert sent(monitor, "detach") == [
            {"group": 5, "force": True, "container": "c1"}, {"group": 8, "force": True, "container": "c1"},
        ]  # fmt: skip

    @pytest.mark.parametrize("targets", [["3b:00.0", "3b:00.1"], ["8", "3b:00.0"], ["8", "8"]])
    def test_group_that_is_named_twice_is_detached_once(
        self, hawse: Command, monitor: FakeMonitor, targets: list[str]
    ) -> None:
        hosts = [{"address": f"0000:3b:00.{number}", "group": 8} for number in (0, 1)]
        monitor.change(vfio=[entry(8) | {"host": host} for host in hosts])
        done = hawse("detach", "c1", *targets)
        assert (done.code, done.errors) == (0, "")
        assert sent(monitor, "detach") == [{"group": 8, "force": False, "container": "c1"}]

    def test_address_that_was_not_attached_must_be_the_hosts(self, hawse: Command, monitor: FakeMonitor) -> None:
        done = hawse("detach", "c1", "ffff:ff:1f.7")
        assert (done.code, "ffff:ff:1f.7 is not a PCI function of this host" in done.errors) == (1, True)
        assert monitor.calls == []

    @pytest.mark.parametrize("verb", ["detach", "attach"])
    @pytest.mark.parametrize(
        ("host", "target", "words"),
        [
            ({"address": "", "group": 5}, "0000:01:00.0", "the emulated group 5"),
            ({"address": "", "group": 5}, "01:00.0", "the emulated group 5"),
            ({"address": "ffff:3b:00.0", "group": 8}, "01:00.0", "ffff:3b:00.0"),
        ],
    )
    def test_address_in_the_guest_is_refused_with_the_address_on_the_host(
        self, hawse: Command, monitor: FakeMonitor, verb: str, host: dict[str, Any], target: str, words: str
    ) -> None:
        """Nothing is changed, not even for the targets before it."""
        monitor.change(vfio=[entry(5) | {"host": host, "guest": {"address": "0000:01:00.0"}}])
        done = hawse(verb, "c1", "7", target)
        remedy = f"`hawse detach c1 {host['address'] or 5}`" if verb == "detach" else "it is attached already"
        assert done.errors == (
            f"hawse: 0000:01:00.0 is an address in the guest; on the host this is {words} [{remedy}]\n"
        )
        assert (done.code, monitor.calls) == (1, [])

    def test_group_in_use_is_not_detached(self, hawse: Command, monitor: FakeMonitor) -> None:
        monitor.answers["detach"] = DeviceError("group 5 is in use")
        done = hawse("detach", "c1", "5", "7")
        assert done.errors == "hawse: group 5 is in use\n"
        assert sent(monitor, "detach") == [{"group": 5, "force": False, "container": "c1"}]
