"""Building a machine's template ahead of the first container that would leave it behind."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack

from hawse.config import Config
from hawse.errors import ConfigError, HostError, VmError
from hawse.monitor.machine.machine import boot
from hawse.monitor.machine.restore import save
from hawse.monitor.machine.start import launch
from hawse.notes import Note
from hawse.oci.load import load_bundle
from hawse.plan import model
from hawse.planner.machine import plan_machine
from hawse.planner.sandbox import plan_sandbox
from hawse.state.steps import Steps
from hawse.vm import templates


def plan_of(config: Config, bundle: str) -> tuple[model.MachinePlan, list[Note]]:
    """The VM of a sandbox's bundle, or for "" the one without special ports; and what to log. Raises as planning."""
    if not bundle:
        return plan_machine(config, [])
    plan, notes = plan_sandbox(load_bundle(bundle), config, name="template")
    return plan.machine, notes


def build(machine: model.MachinePlan) -> tuple[templates.Template, bool, float]:
    """The template of a machine; whether it was made just now, and in how many seconds.

    Raises :class:`HostError` where templates cannot be kept, and what a boot raises.
    """
    wanted = machine.template
    if wanted is None:
        raise ConfigError(
            "this machine has no template", hint='set template.enabled, and devices.plug to "hot", in the configuration'
        )
    began = time.monotonic()
    if not wanted.usable:
        asyncio.run(_build(machine, wanted))
    found = templates.find(wanted.cache, wanted.digest)
    if found is None:
        raise VmError("the template was not kept")
    return found, not wanted.usable, time.monotonic() - began


async def _build(machine: model.MachinePlan, wanted: model.Template) -> None:
    with tempfile.TemporaryDirectory(prefix="hawse-template-") as directory:
        os.mkdir(f"{directory}/share")
        steps = Steps(f"{directory}/steps.json", [])
        async with AsyncExitStack() as undo:
            made = await boot(machine, launch(machine, directory, steps, share_plugged=False), directory, undo, steps)
            try:
                committing = await save(machine, wanted, made, undo, steps)
                if committing is None:
                    raise HostError("another process is making this template", hint="wait for it")
                await committing
            except OSError as error:
                raise HostError(f"the template cannot be kept: {error.strerror}: {error.filename}") from None
