"""Options of `exec` that change the container's process."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.errors import UsageError
from hawse.oci.process.executed import Changes, change

OWN: dict[str, Any] = {
    "args": ["sh"], "cwd": "/srv", "env": ["A=1"], "terminal": True, "consoleSize": {"height": 1, "width": 2},
    "user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "apparmorProfile": "docker-default", "selinuxLabel": "x",
    "capabilities": {"bounding": ["CAP_KILL"], "inheritable": ["CAP_KILL"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({}, "args", ["id"]),
        ({}, "terminal", False),
        ({}, "cwd", "/srv"),
        ({}, "env", ["A=1"]),
        ({}, "user", OWN["user"]),
        ({}, "capabilities", OWN["capabilities"]),
        ({}, "noNewPrivileges", None),
        ({}, "consoleSize", None),
        ({}, "apparmorProfile", None),
        ({}, "selinuxLabel", None),
        ({"terminal": True}, "terminal", True),
        ({"cwd": "/"}, "cwd", "/"),
        ({"env": ("A=2", "B=3")}, "env", ["A=1", "A=2", "B=3"]),
        ({"user": "7"}, "user", {"uid": 7, "gid": 2, "additionalGids": [3]}),
        ({"user": "7:8"}, "user", {"uid": 7, "gid": 8, "additionalGids": [3]}),
        ({"groups": (5, 6)}, "user", {"uid": 1, "gid": 2, "additionalGids": [3, 5, 6]}),
        ({"no_new_privileges": True}, "noNewPrivileges", True),
        (
            {"capabilities": ("CAP_CHOWN", "CAP_KILL")},
            "capabilities",
            {
                "bounding": ["CAP_KILL", "CAP_CHOWN"], "inheritable": ["CAP_KILL"],
                "effective": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "ambient": ["CAP_CHOWN", "CAP_KILL"],
            },
        ),
    ],
)  # fmt: skip
def test_each_option_changes_one_field(changes: dict[str, Any], field: str, value: object) -> None:
    assert change(OWN, Changes(args=("id",), **changes)).get(field) == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user": "root"}, "--user 'root' is not UID"),
        ({"user": "1:"}, "--user '1:'"),
        ({"user": "4294967296"}, "--user"),
        ({"groups": (-1,)}, "--additional-gids -1"),
        ({"capabilities": ("chown",)}, "--cap 'chown' is not a capability"),
    ],
)
def test_invalid_option_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        change(OWN, Changes(args=("id",), **changes))
    assert words in caught.value.message
