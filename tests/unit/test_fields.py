"""The table of fields: refused fields are named, values that ask for nothing are accepted, and ignored fields are
removed."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.default_spec import example
from hawse.oci.fields import FIELDS, Fate, Field, Form, is_set, review, review_process

REFUSED = [field for field in FIELDS if field.fate is Fate.REFUSED]
IGNORED = [field for field in FIELDS if field.fate in (Fate.MOOT, Fate.WARNED)]
#: Values of each type that are a request for every field, even if they look empty.
ASKS: list[Any] = [1, -5, True, "x", {"a": {"b": "c"}}, {"a": {}}, {"": None}, [{"major": 8}], [{}], [None], [0], [""]]
#: Values that ask for nothing, by the form of the field.
NOTHING: dict[Form, list[Any]] = {
    Form.VALUE: [None, 0, False, "", {}, []],
    Form.LIMIT: [None, 0, -1],
    Form.OBJECT: [None],
}
#: Values of some forms that look empty but are a request.
LOOKS_EMPTY: dict[Form, list[Any]] = {
    Form.VALUE: [-1],
    Form.LIMIT: [-2],
    Form.OBJECT: [{}, {"a": ""}, {"a": 0}, {"a": {}}, {"a": None}],
}


def repr_of(value: Any) -> str:
    return value.path if isinstance(value, Field) else repr(value)


def with_field(path: str, value: Any) -> dict[str, Any]:
    """The example with the field; if it belongs to a list, in the second entry."""
    spec: dict[str, Any] = example()
    part: Any = spec
    *parents, last = path.split(".")
    for name in parents:
        part = part.setdefault(name, {}) if not name.endswith("[]") else part[name[:-2]][1]
    part[last] = value
    return spec


@pytest.mark.parametrize("field", REFUSED, ids=lambda field: field.path)
@pytest.mark.parametrize("value", ASKS, ids=repr)
def test_field_that_cannot_be_applied_is_named(field: Any, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        review("config.json", with_field(field.path, value))
    assert caught.value.message == f"config.json: {field.path.replace('[]', '[1]')}: {field.why}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in REFUSED for value in LOOKS_EMPTY[field.form]], ids=repr_of
)
def test_value_that_looks_empty_is_refused_unless_it_has_no_meaning(field: Field, value: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{field.path.replace('[]', '[1]')}: {field.why}")):
        review("config.json", with_field(field.path, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in (*REFUSED, *IGNORED) for value in NOTHING[field.form]],
    ids=repr_of,
)
def test_field_that_asks_for_nothing_is_removed(field: Field, value: Any) -> None:
    parent, _, last = field.path.rpartition(".")
    spec = with_field(field.path, value)
    if parent == "vm":  # an object, which exists then
        spec["vm"][last] = value
        with pytest.raises(ConfigError, match="vm: hawse's configuration defines the virtual machine"):
            review("config.json", spec)
        return
    reviewed, warnings = review("config.json", spec)
    assert warnings == []
    assert f"'{last}'" not in str(reviewed)


@pytest.mark.parametrize("field", IGNORED, ids=lambda field: field.path)
def test_ignored_field_is_removed(field: Field) -> None:
    spec = with_field(field.path, "x")
    before = copy.deepcopy(spec)
    reviewed, warned = review("config.json", spec)
    assert spec == before
    assert f"'{field.path.split('.')[-1]}'" not in str(reviewed)
    if field.fate is Fate.WARNED:
        assert warned == [f"{field.path}: 'x' has no effect: {field.why} [{field.hint}]"]
    else:
        assert warned == []


def test_unconfined_container_has_no_policy() -> None:
    _, warnings = review("config.json", with_field("process.apparmorProfile", "unconfined"))
    assert warnings == []


def test_limits_that_ask_for_nothing_are_removed_and_others_kept() -> None:
    spec = example()
    devices = spec["linux"]["resources"]["devices"]
    spec["linux"]["resources"] |= {
        "memory": {"limit": 5, "swap": 0, "reservation": None},
        "cpu": {"shares": 0, "quota": -1},
        "network": {},
        "pids": {"limit": -1},
        "unified": {"memory.high": "0"},
    }
    reviewed, _ = review("config.json", spec)
    assert reviewed["linux"]["resources"] == {
        "devices": devices, "memory": {"limit": 5}, "unified": {"memory.high": "0"},
    }  # fmt: skip


def test_example_is_unchanged() -> None:
    spec = example()
    before = copy.deepcopy(spec)
    assert review("config.json", spec) == (before, [])
    assert spec == before


def test_process_of_an_exec_is_checked() -> None:
    process = {"args": ["a"], "apparmorProfile": "p", "ioPriority": None}
    reviewed, warnings = review_process("process.json", process)
    assert reviewed == {"args": ["a"]}
    assert len(warnings) == 1
    assert process == {"args": ["a"], "apparmorProfile": "p", "ioPriority": None}
    with pytest.raises(ConfigError, match=r"^process\.json: ioPriority: the guest's runtime does not support it$"):
        review_process("process.json", {"ioPriority": {}})
    with pytest.raises(ConfigError, match=r"^process\.json: scheduler: the guest's runtime does not support it$"):
        review_process("process.json", {"scheduler": {"policy": "SCHED_FIFO"}})


@pytest.mark.parametrize("value", [5, [], "x", None])
def test_part_of_another_type_is_left_to_the_check_of_types(value: Any) -> None:
    review("config.json", {"linux": {"resources": value}, "process": value, "mounts": value})


def test_every_field_is_listed_once_and_refused_ones_have_a_reason() -> None:
    assert len(FIELDS) == len({field.path for field in FIELDS})
    assert all(field.why for field in (*REFUSED, *IGNORED))


def test_value_counts_as_set_unless_empty_or_not_positive() -> None:
    assert all(map(is_set, [1, True, "x", {"a": {"b": "c"}}, [{}]]))
    assert not any(map(is_set, [None, 0, -1, False, "", {}, [], {"a": {"b": 0, "c": None}}]))
