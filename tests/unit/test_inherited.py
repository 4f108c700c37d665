"""Attributes that a process inherits from the caller of `create` and `exec`, unless the specification sets them."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.agent.machine import boot
from hawse.linux import attributes
from hawse.oci.checks import RLIMITS
from hawse.oci.process.inherited import MOST_FILES, Inherited, inherit, inherit_exec

NOFILE, CORE, MEMLOCK = "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_MEMLOCK"
UNLIMITED = attributes.INFINITY


def limit(name: str, soft: int, hard: int) -> dict[str, Any]:
    return {"type": name, "soft": soft, "hard": hard}


@pytest.mark.parametrize(
    ("named", "caller", "expected"),
    [
        pytest.param([], {}, None, id="none at all"),
        pytest.param([], {CORE: (0, UNLIMITED)}, [limit(CORE, 0, UNLIMITED)], id="the caller's"),
        pytest.param([limit(CORE, 1, 2)], {CORE: (5, 6)}, [limit(CORE, 1, 2)], id="named"),
        pytest.param(
            [limit(CORE, 1, 2)], {MEMLOCK: (5, 6)}, [limit(CORE, 1, 2), limit(MEMLOCK, 5, 6)], id="one of each"
        ),
        pytest.param([limit(CORE, 1, 2)], {}, [limit(CORE, 1, 2)], id="named alone"),
        pytest.param([], {NOFILE: (1024, 2**30 - 8)}, [limit(NOFILE, 1024, 2**30 - 8)], id="a host's most files"),
        pytest.param([], {NOFILE: (1024, MOST_FILES)}, [limit(NOFILE, 1024, MOST_FILES)], id="a kernel's most files"),
        pytest.param(
            [], {NOFILE: (1024, MOST_FILES + 1)}, [limit(NOFILE, 1024, MOST_FILES)], id="more than a kernel's"
        ),
        pytest.param(
            [], {NOFILE: (UNLIMITED, UNLIMITED)}, [limit(NOFILE, MOST_FILES, MOST_FILES)], id="unlimited files"
        ),
        pytest.param([], {MEMLOCK: (UNLIMITED,) * 2}, [limit(MEMLOCK, UNLIMITED, UNLIMITED)], id="unlimited memory"),
        pytest.param([limit(NOFILE, 0, UNLIMITED)], {}, [limit(NOFILE, 0, UNLIMITED)], id="a named one is not clamped"),
    ],
)
def test_limits(named: list[Any], caller: dict[str, tuple[int, int]], expected: list[Any] | None) -> None:
    process = {"args": ["x"]} | ({"rlimits": named} if named else {})
    before = msgspec.to_builtins(process)
    assert inherit(process, Inherited(rlimits=caller)).get("rlimits") == expected
    assert process == before


@pytest.mark.parametrize(
    ("named", "caller", "expected"),
    [(None, 0, None), (None, 7, 7), (None, -999, -999), (0, 7, 0), (-5, 7, -5), (3, 0, 3)],
)
def test_oom_score_adj(named: int | None, caller: int, expected: int | None) -> None:
    process = inherit({"oomScoreAdj": named}, Inherited(oom_score_adj=caller))
    assert process["oomScoreAdj"] == expected


@pytest.mark.parametrize(
    ("user", "container", "expected"),
    [
        (None, None, 0o77), ({"uid": 5}, {"uid": 6}, 0o77), ({"umask": 0o27}, None, 0o27), ({"umask": 0}, None, 0),
        ({}, {"umask": 0o33}, 0o33), ({}, {"umask": 0}, 0), ({"umask": 0o27}, {"umask": 0o33}, 0o27),
    ],
)  # fmt: skip
def test_umask_of_an_exec(user: Any, container: Any, expected: int) -> None:
    process = inherit_exec({"user": user}, Inherited(umask=0o77), container={"user": container, "rlimits": ["not its"]})
    assert process["user"] == (user or {}) | {"umask": expected}
    assert "rlimits" not in process


def test_umask_of_the_first_process_is_its_own() -> None:
    assert inherit({"user": {"uid": 1}}, Inherited(umask=0o77))["user"] == {"uid": 1}


def test_limit_names_are_those_of_the_specification() -> None:
    assert sorted(attributes.RLIMITS) == [f"RLIMIT_{name}" for name in sorted(RLIMITS)]
    for name in set(attributes.RLIMITS) - {"RLIMIT_LOCKS"}:
        if hasattr(resource, name):
            assert attributes.RLIMITS.index(name) == getattr(resource, name)


def test_attributes_are_read_from_the_process() -> None:
    program = (
        "import json, os, resource as r; from hawse.linux import attributes as a; os.umask(0o31);"
        "r.setrlimit(r.RLIMIT_CORE, (3, 4)); r.setrlimit(10, (5, r.RLIM_INFINITY));"
        "print(json.dumps([a.rlimits(), a.umask(), os.umask(0), a.oom_score_adj()]))"
    )
    words = ["/bin/sh", "-c", 'echo 42 > /proc/self/oom_score_adj; exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, check=True)
    limits, mask, after, adjustment = msgspec.json.decode(done.stdout)
    assert (limits["RLIMIT_CORE"], limits["RLIMIT_LOCKS"]) == ([3, 4], [5, UNLIMITED])
    assert len(limits) == 16
    assert (mask, after, adjustment) == (0o31, 0o31, 42)


@pytest.mark.parametrize("text", [None, "", "x\n"])
def test_missing_oom_score_adj_counts_as_zero(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "adj").write_text(text)
    assert attributes.oom_score_adj(f"{tmp_path}/adj") == 0


def test_guest_and_host_agree_on_the_maximum_of_open_files() -> None:
    """The guest contains only the link's modules of the host."""
    assert boot.MOST_FILES == MOST_FILES == 2147483584


def test_rules_for_links_and_traps_are_read_where_the_kernel_has_them(tmp_path: Path) -> None:
    (tmp_path / "protected_hardlinks").write_text("1\n")
    (tmp_path / "protected_regular").write_text("2\n")
    assert attributes.protected_files(str(tmp_path)) == {"hardlinks": "1", "regular": "2"}
    assert attributes.protected_files(f"{tmp_path}/none") == {}
