"""Get a VM: restore it from its template, or boot it and save a template for later starts.

An error of a template must not fail a container: the VM boots instead, and one warning gives the reason.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

from hawse.errors import HawseError, VmError
from hawse.monitor.agent.calls import PrepareTemplate
from hawse.monitor.machine.machine import Machine, begin_sharing, boot, restore
from hawse.monitor.machine.start_programs import Launched, describe, launch
from hawse.notes import Notes, warning
from hawse.plan import model
from hawse.state.steps import MEMORY, QEMU, Steps
from hawse.vm import ram_file, templates

_PREPARE_SECONDS = 300.0
_SAVE_SECONDS = 120.0
_QMP_SECONDS = 60.0
_MAX_STATE = 64 * ram_file.MIB
_PIECE = 256 * 1024
_POLL_SECONDS = 0.01


async def obtain(
    plan: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps, notes: Notes
) -> Machine:
    """A VM whose agent answers. Raises as :func:`boot`; errors of templates only give notes."""
    template = plan.template
    if launched.saved is not None:
        clone = await _restored(plan, launched, directory, undo, steps, notes)
        if clone is not None:
            return clone
        warn = launched.warn
        launched = launch(plan, directory, steps, share_plugged=False, jail=launched.jail)
        launched.warn = warn
    machine = await boot(plan, launched, directory, undo, steps)
    if template is not None:
        try:
            await save(plan, template, machine, undo, steps)
        except (HawseError, OSError) as error:
            if (reason := await machine.end()) is not None:
                raise reason from None
            notes.append(warning(f"cannot save a template for later starts: {_reason(error)}"))
    begin_sharing(plan, machine, undo, steps)
    return machine


async def _restored(
    plan: model.MachinePlan,
    launched: Launched,
    directory: str,
    undo: AsyncExitStack,
    steps: Steps,
    notes: Notes,
) -> Machine | None:
    """Restore the VM from its template. Returns None if that fails, after the attempt was rolled back."""
    template = plan.template
    assert template is not None
    async with AsyncExitStack() as attempt:
        try:
            machine = await restore(plan, launched, directory, attempt, steps)
        except (HawseError, OSError) as error:
            reason = f"cannot restore the template {template.digest[:12]}, and the virtual machine boots instead: "
            notes.append(warning(reason + _reason(error)))
        else:
            undo.push_async_exit(attempt.pop_all())
            return machine
    try:
        templates.remove(template.cache, template.digest)
    except OSError:
        pass  # it is missing, or cannot be removed: then the next start fails to restore it, too
    return None


async def save(
    plan: model.MachinePlan, template: model.Template, machine: Machine, undo: AsyncExitStack, steps: Steps
) -> asyncio.Task[None] | None:
    """Save a VM that has just booted as a template. The VM is paused only for the copy.

    Returns a task that ends when others can see the template, or None if another process is saving the same template.
    If it raises :class:`HawseError` or OSError, nothing of the attempt remains.
    """
    draft = templates.begin(template.cache, template.digest, plan.shape)
    if draft is None:
        return None
    try:
        await machine.link.call(PrepareTemplate(), seconds=_PREPARE_SECONDS)
        await machine.qmp.execute("stop", {}, timeout=_QMP_SECONDS)
        try:
            with steps.span(QEMU, "state saved"):
                state = await _state(machine)
            with steps.span(MEMORY, "memory saved"):
                await asyncio.to_thread(draft.fill, machine.ram, state)
        finally:
            await machine.qmp.execute("cont", {}, timeout=_QMP_SECONDS)
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


async def _state(machine: Machine) -> bytes:
    """CPU and device state, saved by migration to an fd without RAM (`x-ignore-shared`)."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            await machine.qmp.give(theirs.fileno(), "state", timeout=_QMP_SECONDS)
        ours.setblocking(False)
        await machine.qmp.leave_memory_alone(timeout=_QMP_SECONDS)
        await machine.qmp.execute("migrate", {"uri": "fd:state"}, timeout=_QMP_SECONDS)
        state = bytearray()
        async with asyncio.timeout(_SAVE_SECONDS):
            while piece := await asyncio.get_running_loop().sock_recv(ours, _PIECE):
                state += piece
                if len(state) > _MAX_STATE:
                    raise VmError(f"the saved state has more than {_MAX_STATE} bytes")
            while (status := await machine.qmp.migration(timeout=_QMP_SECONDS)) not in ("completed", "failed"):
                await asyncio.sleep(_POLL_SECONDS)
    if status != "completed":
        raise VmError("QEMU failed to save the VM's state")
    return bytes(state)


def _reason(error: HawseError | OSError) -> str:
    return error.sentence() if isinstance(error, HawseError) else describe(error)
