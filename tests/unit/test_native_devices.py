"""Functions that the guest's own drivers have: the agent's answer is checked, its nodes are in the specification."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from hawse.errors import DeviceError, StateError, VmError
from hawse.monitor.devices.attachments import Attachments
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.guest_drivers import Native, annotation, read_answer, with_nodes
from hawse.state.store import GUEST_DEVICES
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.groups import BOUND, EDU, NICS, plan, wanted

[PLUG] = plan(EDU).plugs
ANSWER: dict[str, Any] = {
    "driver": "e1000e", "interfaces": ["enp2s0"], "nodes": [["dri/card0", "c", 226, 0], ["sda", "b", 8, 2**20 - 1]]
}  # fmt: skip


def test_answer_of_the_agent() -> None:
    native = read_answer(PLUG, ANSWER)
    nodes = (("/dev/dri/card0", "c", 226, 0), ("/dev/sda", "b", 8, 2**20 - 1))
    assert native == Native("e1000e", ("enp2s0",), nodes)
    assert native.names == ["enp2s0", "dri/card0", "sda"]
    assert read_answer(PLUG, {"driver": "x" * 64, "interfaces": ["a"] * 256, "nodes": [["a/b/c/d", "c", 0, 0]] * 256})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"driver": ""}, id="no driver"),
        pytest.param({"driver": None}, id="driver is no text"),
        pytest.param({"driver": "x" * 65}, id="driver too long"),
        pytest.param({"driver": "a b"}, id="driver with a space"),
        pytest.param({"interfaces": ["a"] * 257}, id="too many interfaces"),
        pytest.param({"interfaces": ["\x1b[2J"]}, id="interface with escape sequence"),
        pytest.param({"interfaces": 7}, id="interfaces are no list"),
        pytest.param({"nodes": [["a", "c", 1, 1]] * 257}, id="too many nodes"),
        pytest.param({"nodes": [["../mem", "c", 1, 1]]}, id="parent directory"),
        pytest.param({"nodes": [["a/../mem", "c", 1, 1]]}, id="parent directory inside"),
        pytest.param({"nodes": [["/mem", "c", 1, 1]]}, id="absolute path"),
        pytest.param({"nodes": [["a/b/c/d/e", "c", 1, 1]]}, id="path too deep"),
        pytest.param({"nodes": [["a", "p", 1, 1]]}, id="no device"),
        pytest.param({"nodes": [["a", "c", -1, 1]]}, id="negative major"),
        pytest.param({"nodes": [["a", "c", 1, 2**20]]}, id="minor too great"),
        pytest.param({"nodes": [["a", "c", 1, True]]}, id="minor is no number"),
        pytest.param({"nodes": [["a", "c", 1, 1.0]]}, id="minor is a fraction"),
        pytest.param({"nodes": [["a", "c", 1]]}, id="no minor"),
        pytest.param({"nodes": [7]}, id="no node"),
        pytest.param({"nodes": [["a", "c", 1, 1, 1]]}, id="too many fields of a node"),
        pytest.param({"nodes": ["acbd"]}, id="node is a text"),
        pytest.param({"interfaces": "eth0"}, id="interfaces are a text"),
        pytest.param({"interfaces": {"eth0": 1}}, id="interfaces are a mapping"),
        pytest.param({"interfaces": None, "nodes": None}, id="nothing"),
    ],
)
def test_answer_that_is_not_usable(changes: dict[str, Any]) -> None:
    with pytest.raises(VmError, match="emulated edu: the guest reports nothing usable of its driver: ") as caught:
        read_answer(PLUG, ANSWER | changes)
    assert caught.value.hint
    assert "argument" not in caught.value.message, "no words of Python's"


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"driver": "x"}, {"driver": "x", "interfaces": []}])
def test_answer_of_another_type(answer: object) -> None:
    with pytest.raises(VmError, match="nothing usable"):
        read_answer(PLUG, answer)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"linux": None},
        {"linux": {"resources": None, "devices": None}},
        {"linux": {"resources": {"pids": {"limit": 5}}}, "process": {}},
    ],
)
def test_nodes_are_added_with_the_rights_of_the_group(spec: dict[str, Any]) -> None:
    native = {PLUG.device: read_answer(PLUG, ANSWER)}
    made = with_nodes(spec, [PLUG, *plan(NICS).plugs], native, {5: {"fileMode": 0o660, "uid": 1}})
    assert made["linux"]["devices"] == [
        {"path": "/dev/dri/card0", "type": "c", "major": 226, "minor": 0, "fileMode": 0o660, "uid": 1},
        {"path": "/dev/sda", "type": "b", "major": 8, "minor": 2**20 - 1, "fileMode": 0o660, "uid": 1},
    ]
    assert made["linux"]["resources"]["devices"] == [
        {"allow": True, "access": "rwm", "type": "c", "major": 226, "minor": 0},
        {"allow": True, "access": "rwm", "type": "b", "major": 8, "minor": 2**20 - 1},
    ]
    kept = ((spec.get("linux") or {}).get("resources") or {}).get("pids")
    assert made["linux"]["resources"].get("pids") == kept
    assert ("process" in made) == ("process" in spec)


def test_devices_and_rules_of_the_specification_are_kept() -> None:
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    deny = {"allow": False, "access": "rwm"}
    spec = {"linux": {"devices": [null], "resources": {"devices": [deny]}}}
    made = with_nodes(spec, [PLUG], {PLUG.device: read_answer(PLUG, ANSWER)}, {})
    assert made["linux"]["devices"][0] == null
    assert made["linux"]["resources"]["devices"][0] == deny
    assert (len(made["linux"]["devices"]), len(made["linux"]["resources"]["devices"])) == (3, 3)
    assert spec == {"linux": {"devices": [null], "resources": {"devices": [deny]}}}, "the plan is not changed"


def test_annotation_names_functions_by_their_address_on_the_host() -> None:
    natives = {PLUG.device: read_answer(PLUG, ANSWER)}
    names = ["enp2s0", "dri/card0", "sda"]
    host = msgspec.structs.replace(PLUG, host="0000:3b:00.0")
    assert annotation([host, *plan(NICS).plugs], natives) == {GUEST_DEVICES: json.dumps({"0000:3b:00.0": names})}
    assert annotation([PLUG], natives) == {GUEST_DEVICES: json.dumps({"0000:02:00.0": names})}
    assert annotation([PLUG], {}) == {}


def attachments(answers: dict[str, Any]) -> tuple[Attachments, FakeQmp, FakeLink, Claims]:
    """Of a container whose group EDU is native and whose group NICS is not."""
    made = msgspec.structs.replace(plan(EDU, NICS), native={5: {"uid": 1}})
    claims = Claims(made.ports)
    link = FakeLink({"bind_vfio": BOUND, "bind_native": ANSWER} | answers)
    return Attachments(made, claims, seconds=1.0), FakeQmp(), link, claims


def test_groups_of_both_kinds_in_one_container() -> None:
    async def story() -> None:
        made, qmp, link, claims = attachments({})
        assert made.furnish({"a": 1}) == {"a": 1}
        await made.begin(qmp, link)  # type: ignore[arg-type]
        assert sorted(method for method, _ in link.calls) == ["bind_native", "bind_vfio", "bind_vfio"]
        [call] = [params for method, params in link.calls if method == "bind_native"]
        assert call == {"container": "c1", "address": PLUG.guest_address, "seconds": 1.0}
        assert qmp.plugged == {plug.device for plug in made.plugs}
        assert json.loads(made.annotations[GUEST_DEVICES]) == {PLUG.guest_address: ["enp2s0", "dri/card0", "sda"]}
        assert [device["uid"] for device in made.furnish({})["linux"]["devices"]] == [1, 1]
        native, *others = made.seen()
        assert native["guest"] == {"address": PLUG.guest_address, "driver": "e1000e"}
        assert (native["interfaces"], native["nodes"]) == (["enp2s0"], ["/dev/dri/card0", "/dev/sda"])
        assert [entry["guest"]["group"] for entry in others] == [3, 3]
        with pytest.raises(StateError, match="the devices of c1 are the guest kernel's own"):
            await made.attach(wanted(EDU, claims.spares))
        with pytest.raises(StateError, match="the devices of c1 are the guest kernel's own"):
            await made.detach(7, force=False)
        await made.end()
        assert (qmp.plugged, len(claims.spares)) == (set(), 4)

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (DeviceError("0000:02:00.0: no driver"), DeviceError, "edu of group 5, in the guest 0000:02:00.0: no driver"),
        ({"driver": 7}, VmError, "the guest reports nothing usable"),
    ],
)
def test_native_function_that_fails(answer: object, error: type[Exception], words: str) -> None:
    async def story() -> None:
        made, qmp, link, _ = attachments({"bind_native": answer})
        with pytest.raises(error, match=words):
            await made.begin(qmp, link)  # type: ignore[arg-type]
        await made.end()
        assert qmp.plugged == set()

    virtual_time.run(story())
