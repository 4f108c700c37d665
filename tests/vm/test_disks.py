"""Block devices of the host in containers: loop devices here, which a container of the host would use as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.loops import Loop, loop_devices
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

RULE: dict[str, Any] = {"allow": True, "type": "b"}


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[list[Loop]]:
    with loop_devices(str(tmp_path), [16, 16, 16]) as made:
        yield made


def add(spec: dict[str, Any], path: str, loop: Loop, access: str, **rights: int) -> None:
    numbers = {"major": loop.major, "minor": loop.minor}
    spec["linux"].setdefault("devices", []).append({"path": path, "type": "b", **numbers, **rights})
    if access:
        spec["linux"]["resources"]["devices"].append({**RULE, **numbers, "access": access})


def test_disks_are_read_written_and_protected(runtime: Runtime, tmp_path: Path, loops: list[Loop]) -> None:
    """The rules decide: one may be written to, one read, one not opened. What is written is on the host's device."""
    writable, readable, denied = loops
    readable.write(0, b"of the host")
    script = (
        "stat -c '%F %a %u %g' /dev/xvda /srv/below;"
        "blockdev --getsize64 /dev/xvda;"
        "head -c 11 /srv/below; echo;"
        "echo written | dd of=/dev/xvda bs=512 seek=4 conv=fsync 2>/dev/null && echo done;"
        "dd if=/dev/zero of=/srv/below bs=512 count=1;"
        "dd if=/dev/denied of=/dev/null bs=512 count=1;"
        "cat /sys/block/vd*/ro"
    )
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, ["/bin/sh", "-c", script])
    add(spec, "/dev/xvda", writable, "rwm", fileMode=0o640, uid=5, gid=6)
    add(spec, "/srv/below", readable, "r", fileMode=0o666)
    add(spec, "/dev/denied", denied, "", fileMode=0o666)
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    print(result.output, result.errors)
    assert result.code == 0
