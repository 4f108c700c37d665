"""Ids of a container in a user namespace, translated to ids of the guest."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.agent.system.ids import SAME, UNMAPPED, Ids, of_spec

MAPPING = [{"containerID": 0, "hostID": 100000, "size": 1000}, {"containerID": 5000, "hostID": 7, "size": 1}]


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (0, 100000),
        (999, 100999),
        (1000, UNMAPPED),
        (4999, UNMAPPED),
        (5000, 7),
        (5001, UNMAPPED),
        (2**32 - 1, UNMAPPED),
    ],
)
def test_id_outside_of_all_ranges_is_the_overflow_id(inside: int, outside: int) -> None:
    spec = {"linux": {"namespaces": [{"type": "user"}], "uidMappings": MAPPING, "gidMappings": MAPPING[:1]}}
    ids = of_spec(spec)
    assert ids.mapped
    assert ids.uid(inside) == outside
    assert ids.gid(inside) == (UNMAPPED if inside == 5000 else outside)


@pytest.mark.parametrize(
    "spec", [{}, {"linux": {}}, {"linux": {"namespaces": None}}, {"linux": {"namespaces": [{"type": "pid"}]}}]
)
def test_without_a_user_namespace_ids_are_the_guests(spec: dict[str, Any]) -> None:
    assert of_spec(spec) is SAME
    assert not SAME.mapped
    assert (SAME.uid(0), SAME.gid(2**32 - 3)) == (0, 2**32 - 3)


def test_empty_mapping_has_only_the_overflow_id() -> None:
    assert Ids([], [], mapped=True).uid(0) == UNMAPPED
