"""The field of the specification that an error of crun concerns."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.agent.container.spec_fields import field_of

SPEC: dict[str, Any] = {
    "mounts": [
        {"destination": "/x", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "x/", "type": "nofs", "source": "nofs", "options": ["a=b", "ro"]},
        {"destination": "/bin/busybox", "source": "/tmp", "options": ["bind"]},
    ],
    "linux": {
        "devices": [{"path": "/bin/busybox/x", "type": "c"}],
        "resources": {"unified": {"memory.foo": "1"}, "memory": {"limit": 1}},
    },
}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("mount `nofs` to `x`: No such device", "mounts: /x, type nofs, options a=b,ro"),
        ("invalid mount type for `/x`", ""),
        ("invalid target `x`: it must be mounted at the root", "mounts: /x, type nofs, options a=b,ro"),
        ("mount `/tmp` to `bin/busybox`: Not a directory", "mounts: /bin/busybox, type bind, options bind"),
        ("the target `/bin/busybox` is invalid: Not a directory", "mounts: /bin/busybox, type bind, options bind"),
        ("mkdir `/bin/busybox/x`: Not a directory", "linux.devices: /bin/busybox/x"),
        ("mknod `/y/x`: Not a directory", "linux.devices"),
        ("writing file `/proc/7760/gid_map`: Invalid argument", "linux.uidMappings and linux.gidMappings"),
        ("setresuid to 0: Invalid argument", "linux.uidMappings and linux.gidMappings"),
        ("setgroups: Invalid argument", "process.user.additionalGids"),
        ("the sysctl `kernel.panic` is not namespaced", "linux.sysctl"),
        ("write to /proc/sys/kernel/shm_rmid_forced: Invalid argument", "linux.sysctl"),
        ("chdir `/bin/busybox`: Not a directory", "process.cwd"),
        ("write to /proc/self/oom_score_adj: Invalid argument", "process.oomScoreAdj"),
        ("sethostname: Invalid argument", "hostname"),
        ("invalid seccomp action `SCMP_ACT_FOO`", "linux.seccomp"),
        ("unknown persona specified `FOO`", "linux.personality"),
        ("setrlimit `RLIMIT_NOFILE`: Operation not permitted", "process.rlimits"),
        ("error executing hook `/none` (exit code: 1)", "hooks.startContainer"),
        ("OOM: the memory limit could be too low: read from sync socket", "linux.resources.memory"),
        ("writing file `memory.max`: Invalid argument", "linux.resources.memory"),
        ("writing file `memory.foo`: No such file or directory", "linux.resources.unified"),
        ("writing file `cpu.max`: Invalid argument", "linux.resources.cpu"),
        ("writing file `pids.max`: Invalid argument", "linux.resources.pids"),
        ("writing file `hugetlb.2MB.max`: Invalid argument", "linux.resources.hugepageLimits"),
        ("clone: Resource temporarily unavailable", ""),
    ],
)  # fmt: skip
def test_error_names_the_field(message: str, field: str) -> None:
    assert field_of(message, SPEC) == field


def test_specification_without_mounts_has_errors_too() -> None:
    assert field_of("mount `nofs` to `x`: No such device", {}) == ""
