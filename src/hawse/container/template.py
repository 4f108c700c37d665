"""Building the template of the configuration's machine ahead of the first container that would leave it behind."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack

from hawse.config import Config
from hawse.container.plan import Log, plan_machine
from hawse.errors import ConfigError, HostError, VmError
from hawse.sandbox import plan
from hawse.sandbox.launch import launch
from hawse.sandbox.machine import boot
from hawse.sandbox.steps import Steps
from hawse.sandbox.templates import save
from hawse.vm import template


def build(config: Config, *, log: Log) -> tuple[template.Template, bool, float]:
    """The template of a machine without special ports; whether it was made just now, and in how many seconds.

    Raises :class:`HostError` where templates cannot be kept, and what a boot raises.
    """
    if not config.template.enabled:
        raise ConfigError("templates are turned off", hint="set template.enabled in the configuration")
    machine = plan_machine(config, [], log)
    wanted = machine.template
    assert wanted is not None
    began = time.monotonic()
    if not wanted.usable:
        asyncio.run(_build(machine, wanted))
    found = template.find(wanted.cache, wanted.digest)
    if found is None:
        raise VmError("the template was not kept")
    return found, not wanted.usable, time.monotonic() - began


async def _build(machine: plan.MachinePlan, wanted: plan.Template) -> None:
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
