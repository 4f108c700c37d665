"""config-linux.md, seccomp and personality."""

from __future__ import annotations

import re

from tests.conformance.subject import Bundle
from tests.conformance.suite import Case, Group, Spec, inside

SECCOMP = "config-linux.md#seccomp"
PERSONALITY = "config-linux.md#personality"
EACCES = 13


def _filtered(spec: Spec, _bundle: Bundle) -> None:
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": EACCES},
            {"names": ["symlink", "symlinkat", "of_a_later_kernel"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS"},
            {
                "names": ["kill"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }


FILTERED = inside(
    "seccomp",
    _filtered,
    [
        Case("seccomp-errno-ret", SECCOMP, "a call fails with the errno of errnoRet", re.compile("Permission denied"),
             "mkdir /data/x"),
        Case("seccomp-errno", SECCOMP, "SCMP_ACT_ERRNO without errnoRet is EPERM",
             re.compile("Operation not permitted"), "busybox ln -s a /data/y"),
        Case("seccomp-kill", SECCOMP, "SCMP_ACT_KILL_PROCESS ends the process with SIGSYS", "159",
             "busybox hostname x 2>/dev/null; echo $?"),
        Case("seccomp-args", SECCOMP, "args: a filter can depend on the arguments of a call", "1 0",
             "sleep 9 & kill -USR1 $! 2>/dev/null; a=$?; kill -TERM $!; echo $a $?"),
        Case("seccomp-mode", SECCOMP, "the process runs with the filter", "Seccomp: 2",
             "grep ^Seccomp: /proc/self/status | busybox tr -s '\\t' ' '"),
    ],
)  # fmt: skip


def _personality(domain: str, flags: str, machine: str) -> Group:
    def edit(spec: Spec, _bundle: Bundle) -> None:
        spec["linux"]["personality"] = {"domain": domain}

    return inside(
        f"personality {domain}",
        edit,
        [
            Case(f"personality-{domain.lower()}", PERSONALITY, f"the execution domain is {domain}",
                 f"{flags} {machine}", "echo $(cat /proc/self/personality) $(busybox uname -m)"),
        ],
    )  # fmt: skip


GROUPS = [FILTERED, _personality("LINUX32", "00000008", "i686")]
