"""Getting a machine quickly: from its template where there is a good one, else by a boot that leaves one behind.

Nothing that goes wrong with a template may fail a container: the machine boots then, and one warning says why.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

from hawse.errors import HawseError, VmError
from hawse.monitor.agent.calls import Settle
from hawse.monitor.machine.machine import Machine, begin_sharing, boot, restore
from hawse.monitor.machine.start import Launched, describe, launch
from hawse.notes import Notes, warning
from hawse.plan import model
from hawse.state.steps import MEMORY, QEMU, Steps
from hawse.vm import ram_file, templates

_SETTLE_SECONDS = 300.0
_SAVE_SECONDS = 120.0
_QMP_SECONDS = 60.0
_MAX_STATE = 64 * ram_file.MIB
_PIECE = 256 * 1024
_POLL_SECONDS = 0.01


async def obtain(
    machine: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps, notes: Notes
) -> Machine:
    """A machine whose agent answers. Raises what its boot raises; of templates there are only notes."""
    wanted = machine.template
    if launched.saved is not None:
        clone = await _restored(machine, launched, directory, undo, steps, notes)
        if clone is not None:
            return clone
        warn = launched.warn
        launched = launch(machine, directory, steps, share_plugged=False, jail=launched.jail)
        launched.warn = warn
    made = await boot(machine, launched, directory, undo, steps)
    if wanted is not None:
        try:
            await save(machine, wanted, made, undo, steps)
        except (HawseError, OSError) as error:
            if (reason := await made.end()) is not None:
                raise reason from None
            notes.append(warning(f"no template was left for later starts: {_reason(error)}"))
    begin_sharing(machine, made, undo, steps)
    return made


async def _restored(
    machine: model.MachinePlan,
    launched: Launched,
    directory: str,
    undo: AsyncExitStack,
    steps: Steps,
    notes: Notes,
) -> Machine | None:
    """The machine from its template; None where that fails, after everything of the attempt was taken back."""
    wanted = machine.template
    assert wanted is not None
    async with AsyncExitStack() as attempt:
        try:
            made = await restore(machine, launched, directory, attempt, steps)
        except (HawseError, OSError) as error:
            reason = f"the template {wanted.digest[:12]} cannot be restored, and this start is a cold one: "
            notes.append(warning(reason + _reason(error)))
        else:
            undo.push_async_exit(attempt.pop_all())
            return made
    try:
        templates.remove(wanted.cache, wanted.digest)
    except OSError:
        pass  # gone already, or not ours to remove: it is found wanting again
    return None


async def save(
    machine: model.MachinePlan, wanted: model.Template, made: Machine, undo: AsyncExitStack, steps: Steps
) -> asyncio.Task[None] | None:
    """Save a machine that has just booted. It stands still only for the copy; the rest is done while it goes on.

    The task that is left ends when others can see the template; None when another process is saving the same. Raises
    :class:`HawseError` or OSError, with nothing left of the attempt.
    """
    draft = templates.begin(wanted.cache, wanted.digest, machine.shape)
    if draft is None:
        return None
    try:
        await made.link.call(Settle(), seconds=_SETTLE_SECONDS)
        await made.qmp.execute("stop", {}, timeout=_QMP_SECONDS)
        try:
            with steps.span(QEMU, "state saved"):
                state = await _state(made)
            with steps.span(MEMORY, "memory saved"):
                await asyncio.to_thread(draft.fill, made.ram, state)
        finally:
            await made.qmp.execute("cont", {}, timeout=_QMP_SECONDS)
    except BaseException:
        draft.close()
        raise
    committing = asyncio.create_task(_commit(draft))
    undo.push_async_callback(asyncio.wait, [committing])
    return committing


async def _commit(draft: templates.Draft) -> None:
    try:
        await asyncio.to_thread(draft.commit)
    finally:
        draft.close()


async def _state(made: Machine) -> bytes:
    """What QEMU migrates of a machine whose memory stays where it is."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            await made.qmp.give(theirs.fileno(), "state", timeout=_QMP_SECONDS)
        ours.setblocking(False)
        await made.qmp.leave_memory_alone(timeout=_QMP_SECONDS)
        await made.qmp.execute("migrate", {"uri": "fd:state"}, timeout=_QMP_SECONDS)
        state = bytearray()
        async with asyncio.timeout(_SAVE_SECONDS):
            while piece := await asyncio.get_running_loop().sock_recv(ours, _PIECE):
                state += piece
                if len(state) > _MAX_STATE:
                    raise VmError(f"its state has more than {_MAX_STATE} bytes")
            while (status := await made.qmp.migration(timeout=_QMP_SECONDS)) not in ("completed", "failed"):
                await asyncio.sleep(_POLL_SECONDS)
    if status != "completed":
        raise VmError("QEMU failed to save its state")
    return bytes(state)


def _reason(error: HawseError | OSError) -> str:
    return error.sentence() if isinstance(error, HawseError) else describe(error)
