"""The table of fields: what is refused is named, what asks for nothing is not, and what is passed over is gone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.fields import FIELDS, Fate, is_set, review, review_process
from hawse.oci.template import example

REFUSED = [field for field in FIELDS if field.fate is Fate.REFUSED]
MOOT = [field for field in FIELDS if field.fate is Fate.MOOT]
#: Values of each type that ask for something, and how engines write that nothing is asked for.
ASKS: list[Any] = [1, True, "x", {"a": {"b": "c"}}, [{"major": 8}]]
NOTHING: list[Any] = [None, 0, -1, False, "", {}, [], {"a": {"b": 0, "c": None}}]


def with_field(path: str, value: Any) -> dict[str, Any]:
    """The example with that field, in the second entry where it is of a list."""
    spec: dict[str, Any] = example()
    part: Any = spec
    *parents, last = path.split(".")
    for name in parents:
        part = part.setdefault(name, {}) if not name.endswith("[]") else part[name[:-2]][1]
    part[last] = value
    return spec


@pytest.mark.parametrize("field", REFUSED, ids=lambda field: field.path)
@pytest.mark.parametrize("value", ASKS, ids=repr)
def test_a_field_that_cannot_be_applied_is_named(field: Any, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        review("config.json", with_field(field.path, value))
    assert caught.value.message == f"config.json: {field.path.replace('[]', '[1]')}: {field.why}"
    assert caught.value.hint


@pytest.mark.parametrize("name", [{}, {"name": ""}])
def test_an_interface_is_asked_for_by_its_name_only(name: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"linux\.netDevices: an interface of the host cannot be moved"):
        review("config.json", with_field("linux.netDevices", {"eth0": name}))


@pytest.mark.parametrize("field", [*REFUSED, *MOOT], ids=lambda field: field.path)
@pytest.mark.parametrize("value", NOTHING, ids=repr)
def test_a_field_that_asks_for_nothing_is_taken_out(field: Any, value: Any) -> None:
    if field.path == "linux.netDevices" and isinstance(value, dict) and value:
        return  # the test above
    spec = with_field(field.path, value)
    review("config.json", spec)
    assert field.path.split(".")[-1] not in str(spec)


@pytest.mark.parametrize("field", MOOT, ids=lambda field: field.path)
def test_a_field_that_is_passed_over_is_taken_out(field: Any) -> None:
    spec = with_field(field.path, "x")
    review("config.json", spec)
    assert field.path.split(".")[-1] not in str(spec)


def test_limits_that_ask_for_nothing_are_taken_out_and_others_stay() -> None:
    spec = example()
    devices = spec["linux"]["resources"]["devices"]
    spec["linux"]["resources"] |= {
        "memory": {"limit": 5, "swap": 0, "reservation": None},
        "cpu": {"shares": 0, "quota": -1},
        "network": {},
        "pids": {"limit": -1},
        "unified": {"memory.high": "0"},
    }
    review("config.json", spec)
    assert spec["linux"]["resources"] == {
        "devices": devices, "memory": {"limit": 5}, "unified": {"memory.high": "0"},
    }  # fmt: skip


def test_the_example_is_left_as_it_is() -> None:
    spec = example()
    before = copy.deepcopy(spec)
    review("config.json", spec)
    assert spec == before


def test_a_process_alone() -> None:
    process = {"args": ["a"], "apparmorProfile": "p", "ioPriority": {}}
    review_process("process.json", process)
    assert process == {"args": ["a"]}
    with pytest.raises(ConfigError, match=r"^process\.json: scheduler: the guest's runtime cannot set it$"):
        review_process("process.json", {"scheduler": {"policy": "SCHED_FIFO"}})


@pytest.mark.parametrize("value", [5, [], "x", None])
def test_a_part_of_another_type_is_left_to_who_reads_it(value: Any) -> None:
    review("config.json", {"linux": {"resources": value}, "process": value, "mounts": value})


def test_every_field_is_there_once_and_the_refused_say_why() -> None:
    assert len(FIELDS) == len({field.path for field in FIELDS})
    assert all(field.why for field in (*REFUSED, *MOOT))
    assert all(map(is_set, ASKS))
    assert not any(map(is_set, NOTHING))
