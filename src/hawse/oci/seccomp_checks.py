"""linux.seccomp: its types, and checks that do not depend on the host (config-linux.md, Seccomp). Pure.

hawse checks the values because the guest's runtime names no field in its errors ("seccomp get action").
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hawse.errors import ConfigError

_ACTIONS = (
    "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG",
)  # fmt: skip
_NOTIFY = "SCMP_ACT_NOTIFY"
_OPERATORS = tuple(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_FLAGS = tuple(f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"))
_ARCHITECTURES = tuple(
    f"SCMP_ARCH_{name}"
    for name in (
        "X86", "X86_64", "X32", "ARM", "AARCH64", "LOONGARCH64", "M68K", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL",
        "MIPSEL64", "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "RISCV64", "S390", "S390X", "SH", "SHEB", "PARISC",
        "PARISC64",
    )
)  # fmt: skip
#: The number of arguments of a system call.
_ARGUMENTS = 6

_Uint = Annotated[int, Meta(ge=0)]


class _Part(Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class Argument(_Part, frozen=True):
    index: _Uint = 0
    value: _Uint = 0
    value_two: _Uint = 0
    op: str = ""


class Syscall(_Part, frozen=True):
    names: list[str] = []
    action: str = ""
    errno_ret: _Uint | None = None
    args: list[Argument] | None = None


class Seccomp(_Part, frozen=True):
    default_action: str = ""
    default_errno_ret: _Uint | None = None
    architectures: list[str] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[Syscall] | None = None


def is_empty(seccomp: Seccomp) -> bool:
    """Whether the object defines no filter, by runc's rule (libcontainer/specconv/spec_linux.go, SetupSeccomp())."""
    return not seccomp.default_action and not seccomp.syscalls


def check_seccomp(name: str, seccomp: Seccomp) -> list[str]:
    """Check the filter of the document ``name``. Returns warnings. Raises :class:`ConfigError` naming the field."""
    where = f"{name}: linux.seccomp"
    if is_empty(seccomp):
        return [
            "linux.seccomp: the container has no filter: neither defaultAction nor syscalls is set "
            "[set them, or remove it]"
        ]
    _check_action(f"{where}.defaultAction", seccomp.default_action)
    for index, architecture in enumerate(seccomp.architectures or ()):
        _check_one_of(f"{where}.architectures[{index}]", architecture, _ARCHITECTURES)
    for index, flag in enumerate(seccomp.flags or ()):
        _check_one_of(f"{where}.flags[{index}]", flag, _FLAGS)
    for index, syscall in enumerate(seccomp.syscalls or ()):
        _check_action(f"{where}.syscalls[{index}].action", syscall.action)
        for number, argument in enumerate(syscall.args or ()):
            place = f"{where}.syscalls[{index}].args[{number}]"
            _check_one_of(f"{place}.op", argument.op, _OPERATORS)
            if argument.index >= _ARGUMENTS:
                raise ConfigError(
                    f"{place}.index: {argument.index}: a system call has arguments 0 to 5", hint="lower it"
                )
    return []


def _check_action(where: str, action: str) -> None:
    if action == _NOTIFY:
        raise ConfigError(
            f"{where}: {_NOTIFY}: the guest cannot reach a listener of the host", hint="use another action"
        )
    _check_one_of(where, action, _ACTIONS)


def _check_one_of(where: str, text: str, known: tuple[str, ...]) -> None:
    if text not in known:
        raise ConfigError(f"{where}: {text[:80]!r} is unknown", hint=f"one of {', '.join(known)}")
