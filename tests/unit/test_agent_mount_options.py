"""Mount options are rewritten so that crun applies them as runc does."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.agent.mounts.crun_options import OPTIONS, adapted, without_overridden, without_recursive


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_each_recursive_option_of_a_file_is_replaced(option: str) -> None:
    expected = [] if option.endswith("symfollow") else [option[1:]]
    assert without_recursive(["rbind", option, "rprivate"]) == ["rbind", "rprivate", *expected]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["rbind", "ro", "rro", "rprivate"], ["rbind", "ro", "rprivate", "ro"]),
        (["rro", "rw"], ["rw", "ro"]),
        (["ro", "rrw"], ["ro", "rw"]),
        (["rrw", "rro"], ["rw", "ro"]),
        (["rrw", "rnosuid", "rnodev"], ["rw", "nosuid", "nodev"]),
        (["rprivate", "rslave", "rbind"], ["rprivate", "rslave", "rbind"]),
    ],
)
def test_recursive_options_are_applied_last_as_in_runc(options: list[str], expected: list[str]) -> None:
    assert without_recursive(options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["bind", "ro", "rw"], ["bind", "rw"]),
        (["rw", "bind", "ro", "nosuid"], ["bind", "ro", "nosuid"]),
        (["nosuid", "suid", "dev", "nodev"], ["suid", "nodev"]),
        (["noexec", "exec", "noexec"], ["noexec"]),
        (["relatime", "noatime", "norelatime", "atime"], ["norelatime", "atime"]),
        (["sync", "async", "rro", "rrw"], ["async", "rro", "rrw"]),
        (["size=1m", "mode=755", "mode=700"], ["size=1m", "mode=755", "mode=700"]),
        (["rprivate", "rslave", "rbind", "nosymfollow"], ["rprivate", "rslave", "rbind", "nosymfollow"]),
    ],
)
def test_last_of_two_contradictory_options_is_applied(options: list[str], expected: list[str]) -> None:
    spec: dict[str, Any] = {"mounts": [{"type": "tmpfs", "options": options}, {"type": "tmpfs"}]}
    assert adapted(spec)["mounts"] == [{"type": "tmpfs", "options": expected}, {"type": "tmpfs"}]
    assert without_overridden(expected) == expected


@pytest.mark.parametrize(
    ("mount", "changed"),
    [
        ({"type": "bind", "source": "/file"}, True),
        ({"source": "/file", "options": ["rbind"]}, True),
        ({"type": "none", "source": "/file", "options": ["bind"]}, True),
        ({"type": "bind", "source": "/directory"}, False),
        ({"type": "tmpfs", "source": "tmpfs"}, False),
    ],
)
def test_only_binds_of_files_are_changed(mount: dict[str, Any], changed: bool) -> None:
    mount = {"options": [], **mount}
    mount["options"] = [*mount["options"], "rro"]
    [result] = adapted({"mounts": [mount]}, is_dir=lambda source: source == "/directory")["mounts"]
    assert result["options"][-1] == ("ro" if changed else "rro")


@pytest.mark.parametrize("spec", [{}, {"mounts": None}, {"mounts": [{"type": "bind", "source": "/file"}]}])
def test_specification_without_such_options_is_unchanged(spec: dict[str, Any]) -> None:
    assert adapted(spec, is_dir=lambda _: False) == spec
