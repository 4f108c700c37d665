"""Functions that drivers of the guest kernel use: the agent's answer is checked, and their nodes are in the
specification."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from hawse.errors import DeviceError, StateError, VmError
from hawse.monitor.agent.answers import NativeFunction, NativeNode
from hawse.monitor.agent.calls import BindNative, read_answer
from hawse.monitor.devices.attachments import Attachments
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.guest_drivers import annotation, with_nodes
from hawse.state.store import GUEST_DEVICES
from hawse.vfio.node import group_node
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.groups import BOUND, EDU, NICS, attachment, plan

[PLUG] = plan(EDU).container.plugs
CALL = BindNative(address="0000:02:00.0", container="c1", seconds=1.0)
CARD = {"name": "dri/card0", "kind": "c", "major": 226, "minor": 0}
DISK = {"name": "sda", "kind": "b", "major": 8, "minor": 2**20 - 1}
ANSWER: dict[str, Any] = {"driver": "e1000e", "interfaces": ["enp2s0"], "nodes": [CARD, DISK]}
NATIVE = NativeFunction(
    "e1000e", ["enp2s0"], [NativeNode("dri/card0", "c", 226, 0), NativeNode("sda", "b", 8, 2**20 - 1)]
)


def test_valid_answer_of_the_agent() -> None:
    assert read_answer(CALL, ANSWER) == NATIVE
    deep = CARD | {"name": "a/b/c/d"}
    assert read_answer(CALL, {"driver": "x" * 64, "interfaces": ["a"] * 256, "nodes": [deep] * 256})
    for name in ("a..b", "..a", "a../b", "...", "a/.../b"):
        assert read_answer(CALL, ANSWER | {"nodes": [CARD | {"name": name}]}).nodes[0].name == name


NO_NAME = r"Expected `str` matching regex "


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({"driver": ""}, f"driver: {NO_NAME}", id="no driver"),
        pytest.param({"driver": None}, "driver: Expected `str`, got `null`", id="driver is no text"),
        pytest.param({"driver": "x" * 65}, f"driver: {NO_NAME}", id="driver too long"),
        pytest.param({"driver": "a b"}, f"driver: {NO_NAME}", id="driver with a space"),
        pytest.param({"driver": "a\n"}, f"driver: {NO_NAME}", id="driver with a line end"),
        pytest.param({"interfaces": ["a"] * 257}, "interfaces: Expected `array` of length <= 256", id="interfaces"),
        pytest.param({"interfaces": ["\x1b[2J"]}, f"interfaces[0]: {NO_NAME}", id="interface with escape sequence"),
        pytest.param({"interfaces": ["a", "b\n"]}, f"interfaces[1]: {NO_NAME}", id="interface with a line end"),
        pytest.param({"interfaces": 7}, "interfaces: Expected `array`, got `int`", id="interfaces are no list"),
        pytest.param({"nodes": [CARD] * 257}, "nodes: Expected `array` of length <= 256", id="too many nodes"),
        *(
            pytest.param({"nodes": [DISK, CARD | {"name": name}]}, f"nodes[1].name: {NO_NAME}", id=f"node {name!r}")
            for name in (
                "../mem", "a/../mem", "a/..", "..", "/mem", "a/b/c/d/e", "a//b", "a/", "", "a\n", "a\0", "a b",
                "x" * 65, "\ud800",
            )
        ),
        pytest.param({"nodes": [CARD | {"kind": "p"}]}, "nodes[0].kind: Invalid enum value 'p'", id="no device"),
        pytest.param({"nodes": [CARD | {"kind": 7}]}, "nodes[0].kind: Expected `str`, got `int`", id="kind is no text"),
        pytest.param({"nodes": [CARD | {"kind": "\ud800"}]}, "a name or a text is not Unicode", id="no Unicode"),
        pytest.param({"nodes": [CARD | {"major": -1}]}, "nodes[0].major: Expected `int` >= 0", id="negative major"),
        pytest.param(
            {"nodes": [CARD | {"minor": 2**20}]}, "nodes[0].minor: Expected `int` <= 1048575", id="minor too great"
        ),
        pytest.param(
            {"nodes": [CARD | {"minor": 2**64}]}, "nodes[0].minor: Expected `int` <= 1048575", id="more than 64 bits"
        ),
        pytest.param(
            {"nodes": [CARD | {"minor": True}]}, "nodes[0].minor: Expected `int`, got `bool`", id="invalid minor"
        ),
        pytest.param(
            {"nodes": [CARD | {"minor": 1.0}]}, "nodes[0].minor: Expected `int`, got `float`", id="minor is a fraction"
        ),
        pytest.param(
            {"nodes": [{"name": "a", "kind": "c", "major": 1}]},
            "nodes[0]: Object missing required field `minor`",
            id="no minor",
        ),
        pytest.param({"nodes": [7]}, "nodes[0]: Expected `object`, got `int`", id="no node"),
        pytest.param({"nodes": [["a", "c", 1, 1]]}, "nodes[0]: Expected `object`, got `array`", id="node is a list"),
        pytest.param({"nodes": ["acbd"]}, "nodes[0]: Expected `object`, got `str`", id="node is a text"),
        pytest.param({"interfaces": "eth0"}, "interfaces: Expected `array`, got `str`", id="interfaces are a text"),
        pytest.param(
            {"interfaces": {"eth0": 1}}, "interfaces: Expected `array`, got `object`", id="interfaces are a mapping"
        ),
        pytest.param({"interfaces": None, "nodes": None}, "interfaces: Expected `array`, got `null`", id="nothing"),
    ],
)  # fmt: skip
def test_invalid_answer_is_refused(changes: dict[str, Any], refusal: str) -> None:
    with pytest.raises(VmError) as caught:
        read_answer(CALL, ANSWER | changes)
    assert caught.value.message.startswith(f"the guest's answer to bind_native is unusable: {refusal}")
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"driver": "x"}, {"driver": "x", "interfaces": []}])
def test_answer_of_another_type_is_refused(answer: object) -> None:
    with pytest.raises(VmError, match=r"^the guest's answer to bind_native is unusable: "):
        read_answer(CALL, answer)


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
    native = {PLUG.device: NATIVE}
    specification = with_nodes(spec, [PLUG, *plan(NICS).container.plugs], native, {5: {"fileMode": 0o660, "uid": 1}})
    assert specification["linux"]["devices"] == [
        {"path": "/dev/dri/card0", "type": "c", "major": 226, "minor": 0, "fileMode": 0o660, "uid": 1},
        {"path": "/dev/sda", "type": "b", "major": 8, "minor": 2**20 - 1, "fileMode": 0o660, "uid": 1},
    ]
    assert specification["linux"]["resources"]["devices"] == [
        {"allow": True, "access": "rwm", "type": "c", "major": 226, "minor": 0},
        {"allow": True, "access": "rwm", "type": "b", "major": 8, "minor": 2**20 - 1},
    ]
    kept = ((spec.get("linux") or {}).get("resources") or {}).get("pids")
    assert specification["linux"]["resources"].get("pids") == kept
    assert ("process" in specification) == ("process" in spec)


def test_devices_and_rules_of_the_specification_are_kept() -> None:
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    deny = {"allow": False, "access": "rwm"}
    spec = {"linux": {"devices": [null], "resources": {"devices": [deny]}}}
    specification = with_nodes(spec, [PLUG], {PLUG.device: NATIVE}, {})
    assert specification["linux"]["devices"][0] == null
    assert specification["linux"]["resources"]["devices"][0] == deny
    assert (len(specification["linux"]["devices"]), len(specification["linux"]["resources"]["devices"])) == (3, 3)
    assert spec == {"linux": {"devices": [null], "resources": {"devices": [deny]}}}, "the plan is not changed"


def test_annotation_names_functions_by_their_address_on_the_host() -> None:
    natives = {PLUG.device: NATIVE}
    names = ["enp2s0", "dri/card0", "sda"]
    host = msgspec.structs.replace(PLUG, host="0000:3b:00.0")
    assert annotation([host, *plan(NICS).container.plugs], natives) == {
        GUEST_DEVICES: json.dumps({"0000:3b:00.0": names})
    }
    assert annotation([PLUG], natives) == {GUEST_DEVICES: json.dumps({"0000:02:00.0": names})}
    assert annotation([PLUG], {}) == {}


def attachments(answers: dict[str, Any]) -> tuple[Attachments, FakeQmp, FakeLink, Claims]:
    """The specification of a container whose group EDU is native and whose group NICS is not."""
    sandbox = plan(EDU, NICS)
    container = msgspec.structs.replace(sandbox.container, native={5: {"uid": 1}}, nodes=[group_node(7)])
    claims = Claims(sandbox.ports)
    link = FakeLink({"bind_vfio": BOUND, "bind_native": ANSWER} | answers)
    return Attachments(container, claims, seconds=1.0), FakeQmp(), link, claims


def test_groups_of_both_kinds_in_one_container() -> None:
    async def story() -> None:
        attached, qmp, link, claims = attachments({})
        assert attached.add_native_nodes({"a": 1}) == {"a": 1}
        await attached.begin(qmp, link)  # type: ignore[arg-type]
        assert sorted(method for method, _ in link.calls) == ["bind_native", "bind_vfio", "bind_vfio"]
        [call] = [params for method, params in link.calls if method == "bind_native"]
        assert call == {"container": "c1", "address": PLUG.guest_address, "seconds": 1.0}
        assert qmp.plugged == {plug.device for plug in attached.plugs}
        assert json.loads(attached.annotations[GUEST_DEVICES]) == {PLUG.guest_address: ["enp2s0", "dri/card0", "sda"]}
        assert [device["uid"] for device in attached.add_native_nodes({})["linux"]["devices"]] == [1, 1]
        native, *others = attached.state_entries()
        assert native["guest"] == {"address": PLUG.guest_address, "driver": "e1000e"}
        assert (native["interfaces"], native["nodes"]) == (["enp2s0"], ["/dev/dri/card0", "/dev/sda"])
        assert [entry["guest"]["group"] for entry in others] == [3, 3]
        with pytest.raises(StateError, match="the devices of c1 are bound to drivers of the guest kernel"):
            await attached.attach(attachment(EDU, claims.spares))
        with pytest.raises(StateError, match="the devices of c1 are bound to drivers of the guest kernel"):
            await attached.detach(7, force=False)
        await attached.end()
        assert (qmp.plugged, len(claims.spares)) == (set(), 4)

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (DeviceError("0000:02:00.0: no driver"), DeviceError, "edu of group 5, in the guest 0000:02:00.0: no driver"),
        ({"driver": 7}, VmError, "the guest's answer to bind_native is unusable: driver: Expected `str`, got `int`"),
    ],
)
def test_failure_of_a_native_function_is_named(answer: object, error: type[Exception], words: str) -> None:
    async def story() -> None:
        attached, qmp, link, _ = attachments({"bind_native": answer})
        with pytest.raises(error, match=words):
            await attached.begin(qmp, link)  # type: ignore[arg-type]
        await attached.end()
        assert qmp.plugged == set()

    virtual_time.run(story())
