"""The recipient of a new container's notifications (sd_notify(3)): the caller's service manager or the engine."""

from __future__ import annotations

from typing import Protocol

from hawse.host.notify import problem
from hawse.oci.load import Bundle
from hawse.oci.process.notify_socket import VARIABLE, Notify, in_mounts


class Log(Protocol):
    """Where what the user should know goes."""

    def warning(self, message: str) -> None: ...
    def debug(self, message: str) -> None: ...


def find_notified(bundle: Bundle, caller: str, log: Log) -> Notify | None:
    """The host's socket. ``caller``: the NOTIFY_SOCKET of who creates the container, "" for none."""
    process, mounts = bundle.raw["process"], bundle.raw.get("mounts") or ()
    found = Notify(host=caller, caller=True) if caller else in_mounts(process, mounts, bundle=bundle.path)
    why = problem(found) if found is not None else ""
    if found is None or not why:
        return found
    if not found.caller:  # the container gets the same error as under runc
        log.debug(f"process.env: {VARIABLE} is not served: {found.host}/{found.below}: {why}")
        return None
    log.warning(unheard(caller, why))
    return found


def unheard(address: str, why: str) -> str:
    """The warning for a caller's socket that cannot be reached."""
    return (
        f"{VARIABLE}: {address[:200]}: {why}: the container's notifications are lost "
        "[it names the service manager's socket; unset it where there is none]"
    )
