"""Build a VM's template in advance, before the first container that would build it."""

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
from hawse.monitor.machine.start_programs import launch
from hawse.notes import Note
from hawse.oci.load import load_bundle
from hawse.plan import model
from hawse.planner.sandbox import plan_sandbox
from hawse.planner.vm import plan_machine
from hawse.state.steps import Steps
from hawse.vm import templates


def plan_vm(config: Config, bundle: str) -> tuple[model.MachinePlan, list[Note]]:
    """Plan the VM of a sandbox's bundle, or for "" the VM with default ports only. Returns the plan and notes to log.

    Raises the errors of planning.
    """
    if not bundle:
        return plan_machine(config, [])
    plan, notes = plan_sandbox(load_bundle(bundle), config, name="template")
    return plan.machine, notes


def build(machine: model.MachinePlan) -> tuple[templates.Template, bool, float]:
    """Build the template of a VM if it does not exist. Returns it, whether it is new, and the duration in seconds.

    Raises :class:`HostError` if the template cannot be saved, and the errors of a boot.
    """
    template_plan = machine.template
    if template_plan is None:
        raise ConfigError(
            "this VM cannot have a template",
            hint='set template.enabled, and devices.plug to "hot", in the configuration',
        )
    began = time.monotonic()
    if not template_plan.usable:
        asyncio.run(_build(machine, template_plan))
    template = templates.find(template_plan.cache, template_plan.digest)
    if template is None:
        raise VmError("the template was not saved")
    return template, not template_plan.usable, time.monotonic() - began


async def _build(machine: model.MachinePlan, template_plan: model.Template) -> None:
    with tempfile.TemporaryDirectory(prefix="hawse-template-") as directory:
        os.mkdir(f"{directory}/share")
        steps = Steps(f"{directory}/steps.json", [])
        async with AsyncExitStack() as undo:
            booted = await boot(machine, launch(machine, directory, steps, share_plugged=False), directory, undo, steps)
            try:
                committing = await save(machine, template_plan, booted, undo, steps)
                if committing is None:
                    raise HostError("another process is building this template", hint="wait until it has finished")
                await committing
            except OSError as error:
                raise HostError(f"cannot save the template: {error.strerror}: {error.filename}") from None
