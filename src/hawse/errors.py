"""The error tree. A class is named after what the code that catches it can do about it.

    HawseError                 one sentence for the user, an optional hint in brackets, an exit code
    ├── UsageError             the command line is wrong: change the command
    ├── ConfigError            config.json, process.json or config.toml is wrong: edit the named field
    ├── HostError              the host lacks something (QEMU, image, permission): install or repair it
    │   └── ImageError         the guest image is missing, stale or damaged: build it again
    ├── DeviceError            a VFIO group or function cannot be passed: bind it, or stop the program that uses it
    ├── VmError                QEMU, virtiofsd or the guest failed: read the evidence
    │   ├── RefusedError       QEMU answered a command with an error: the command had no effect
    │   └── LinkError          the peer broke the link protocol, or the link ended
    └── StateError             the container is not in a state that allows the verb
        ├── NotFoundError      the container does not exist
        └── CommandError       the program inside cannot be executed (exit 126 or 127)

The user sees one line, ``hawse: message [hint]``. ``evidence`` (the end of a console, a program's stderr) follows on
separate lines. In the log it is a separate field, ``evidence``, so that engines that show only one line show the
message.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self


class HawseError(Exception):
    """A failure with a sentence for the user.

    ``message`` describes the failure and its cause, and ``hint`` the remedy. ``evidence`` is output of other programs
    that shows the cause. ``notes`` are logged before the error; they are not sent to other processes.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", evidence: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.evidence = evidence
        self.notes: tuple[tuple[str, str], ...] = ()
        if exit_code is not None:
            self.exit_code = exit_code

    def sentence(self) -> str:
        """The line for the user: the message, and the hint in brackets if it is set."""
        return f"{self.message} [{self.hint}]" if self.hint else self.message

    def with_context(
        self, where: str = "", *, message: str = "", hint: str = "", evidence: str = "", then: str = ""
    ) -> Self:
        """The same error with context that was unknown where it was raised; raise it ``from None``.

        ``where`` precedes the message, and ``message`` replaces it. ``hint`` and ``evidence`` are used if the error has
        none. ``then`` is the message of a second failure, for example of the clean-up.
        """
        text = message or self.message
        error = type(self)(
            f"{where}{': ' if where else ''}{text}{f'; and then {then}' if then else ''}",
            hint=self.hint or hint,
            evidence=self.evidence or evidence,
            exit_code=self.exit_code,
        )
        error.notes = self.notes
        return error

    def after(self, notes: Iterable[tuple[str, str]]) -> Self:
        """The same error, with notes that are logged before its own; raise it ``from None``."""
        error = self.with_context()
        error.notes = (*notes, *self.notes)
        return error

    def followed_by(self, problem: HawseError) -> Self:
        """The same error, followed by an error of the clean-up; raise it ``from None``."""
        hints = [hint for hint in (self.hint, problem.hint) if hint]
        error = self.with_context(then=problem.message)
        error.hint = "; ".join(dict.fromkeys(hints))
        return error

    def to_wire(self) -> dict[str, object]:
        """A JSON object from which :func:`from_wire` creates the same error in another process."""
        return {
            "kind": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "evidence": self.evidence,
            "exit_code": self.exit_code,
        }


class UsageError(HawseError): ...


class ConfigError(HawseError): ...


class HostError(HawseError): ...


class ImageError(HostError): ...


class DeviceError(HawseError): ...


class VmError(HawseError): ...


class RefusedError(VmError): ...


class LinkError(VmError): ...


class StateError(HawseError): ...


class NotFoundError(StateError): ...


class CommandError(StateError):
    exit_code = 127


KINDS = {
    kind.__name__: kind
    for kind in (
        HawseError, UsageError, ConfigError, HostError, ImageError, DeviceError, VmError, RefusedError, LinkError,
        StateError, NotFoundError, CommandError,
    )
}  # fmt: skip

# Texts of other processes are cut to this many characters; hawse's own sentences are shorter.
MAX_TEXT = 16 * 1024


def printable(text: str, *, keep: str = "") -> str:
    """Make text of a guest or of QEMU safe for a terminal: "?" replaces control characters and line ends.

    Characters in ``keep`` are not replaced.
    """
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def from_wire(wire: object) -> HawseError:
    """The error that :meth:`HawseError.to_wire` encoded. Every field is checked, since a guest may have written it."""
    if not isinstance(wire, dict):
        return VmError(f"a peer reported an error in an unknown form: {printable(str(wire)[:200])}")

    def text(key: str, keep: str = "") -> str:
        value = wire.get(key)
        if not isinstance(value, str):
            return ""
        return printable(value[:MAX_TEXT], keep=keep)

    kind = KINDS.get(text("kind"), VmError)
    code = wire.get("exit_code")
    exit_code = code if type(code) is int and 1 <= code <= 255 else None
    return kind(
        text("message") or "unknown error", hint=text("hint"), evidence=text("evidence", keep="\n"), exit_code=exit_code
    )
