"""The recipient of a new container's notifications (sd_notify(3)): the caller's service manager or the engine."""

from __future__ import annotations

from hawse.host.notify import problem
from hawse.notes import Note, debug, warning
from hawse.oci.load import Bundle
from hawse.oci.process.notify_socket import VARIABLE, Notify, in_mounts


def find_notified(bundle: Bundle, caller: str) -> tuple[Notify | None, list[Note]]:
    """Return the host's socket or None, and notes. ``caller``: the creator's NOTIFY_SOCKET, "" for none."""
    process, mounts = bundle.raw["process"], bundle.raw.get("mounts") or ()
    socket = Notify(host=caller, caller=True) if caller else in_mounts(process, mounts, bundle=bundle.path)
    why = problem(socket) if socket is not None else ""
    if socket is None or not why:
        return socket, []
    if not socket.caller:  # the container gets the same error as under runc
        return None, [debug(f"process.env: {VARIABLE} is not served: {socket.host}/{socket.below}: {why}")]
    return socket, [warning(unheard(caller, why))]


def unheard(address: str, why: str) -> str:
    """The warning for a caller's socket that cannot be reached."""
    return (
        f"{VARIABLE}: {address[:200]}: {why}: the container's notifications are lost "
        "[set it to the service manager's socket, or unset it]"
    )
