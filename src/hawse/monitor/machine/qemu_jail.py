"""The jail of a sandbox's QEMU: its user, its root directory and its arguments."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

from hawse.errors import HostError
from hawse.jail import before_exec, tree, users
from hawse.jail.root_directory import INITRD, KERNEL, Root
from hawse.plan.model import JailPlan, PlugStep
from hawse.vm.arguments import VmShape

#: QEMU's system call filter (QEMU docs/system/invocation, -sandbox) denies obsolete calls, and calls that change users
#: and privileges, start programs or change the scheduling.
_SANDBOX = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


class Jail:
    """The jail of one QEMU. Create it in the monitor's private mount namespace: its mounts end with the namespace."""

    def __init__(self, plan: JailPlan, directory: str, *, name: str, kernel: str, initrd: str) -> None:
        """Raises :class:`HostError`. ``name`` is the sandbox's; the root is mounted at ``directory``."""
        self._plan = plan
        with ExitStack() as undo:
            self._held = users.take(plan.first_user, plan.last_user, name=name)
            undo.callback(self._held.close)
            undo.callback(os.close, self._hold(plan.tree))
            self.nodes = Root(directory, tree=plan.tree, kernel=kernel, initrd=initrd, user=self.user)
            self._monitor = os.pidfd_open(os.getpid())
            undo.pop_all()

    @staticmethod
    def _hold(directory: str) -> int:
        try:
            return tree.hold(directory)
        except OSError as error:
            raise HostError(
                f"cannot use QEMU's files at {directory}: {error.strerror}",
                hint="start again: QEMU was changed, and another start has created these files again",
            ) from None

    @property
    def user(self) -> int:
        """QEMU's user id, and group id."""
        return self._held.user

    def inside(self, shape: VmShape) -> VmShape:
        """The same VM, with the paths of its kernel and initrd in the jail."""
        return replace(shape, kernel=KERNEL, initrd=INITRD)

    @property
    def arguments(self) -> list[str]:
        """The options of QEMU's system call filter, if this QEMU has it."""
        return list(_SANDBOX) if self._plan.filters else []

    def enter(self) -> None:
        """Enter the jail, in the forked child before QEMU is executed.

        Raises :class:`hawse.jail.before_exec.Failure`.
        """
        limits = before_exec.Limits(file_bytes=self._plan.file_bytes)
        before_exec.enter(self.nodes.directory, user=self.user, limits=limits, parent=self._monitor)

    def admit_cold(self, plugs: list[PlugStep]) -> None:
        """Let QEMU open the devices that it starts with. Raises :class:`DeviceError`."""
        for plug in plugs:
            if plug.cold and plug.host:
                self.nodes.admit(plug.host, by_file=plug.by_file)
