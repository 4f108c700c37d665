"""Hooks of the host: programs of the bundle's owner, run by the command, in its namespaces and its cgroup.

docs/hooks.md says at which moment each runs and what it finds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hawse.errors import HawseError, HostError, StateError
from hawse.linux.processes import enter_mount_namespace
from hawse.oci.hooks import CREATION
from hawse.plan.model import ContainerPlan
from hawse.state.store import Store

_MAX_OUTPUT = 4096

Hook = Mapping[str, Any]


def state(record: Mapping[str, Any], status: str, pid: int) -> dict[str, Any]:
    """What a hook reads (runtime.md, State). ``record`` has the rest; a container that has ended has no pid."""
    made = {
        "ociVersion": record["ociVersion"],
        "id": record["id"],
        "status": status,
        "pid": pid,
        "bundle": record["bundle"],
        "annotations": record.get("annotations") or {},
    }
    return made if pid else {key: value for key, value in made.items() if key != "pid"}


class Hooked:
    """The hooks of a container that is being made."""

    def __init__(self, plan: ContainerPlan) -> None:
        self._hooks = plan.hooks
        self._record = {
            "ociVersion": plan.oci_version,
            "id": plan.id,
            "bundle": plan.bundle,
            "annotations": plan.annotations,
        }
        self._begun = False

    @property
    def creates(self) -> bool:
        """Whether there are any before the container."""
        return any(self._hooks.get(kind) for kind in CREATION)

    def before(self, *, pid: int, sandbox: Store) -> None:
        """Run those before the container is made; createContainer's in the mount namespace of the sandbox's monitor.

        Raises :class:`HostError` at the first that fails, and :class:`StateError` where the monitor has ended.
        """
        self._begun = True
        about = state(self._record, "creating", pid)
        monitor = sandbox.open_monitor(sandbox.read().get("monitorPid", 0))
        if monitor < 0:
            raise StateError(f"container not running: {sandbox.name}: its monitor has ended")
        try:
            for kind in CREATION:
                for index, hook in enumerate(self._hooks.get(kind, ())):
                    _run(f"{kind} hook #{index}", hook, about, monitor if kind == "createContainer" else -1)
        finally:
            os.close(monitor)

    def undo(self) -> list[str]:
        """The container was not made: where others have run, so do poststop's (runtime.md, Lifecycle); the warnings."""
        if not self._begun:
            return []
        return run_all("poststop", self._hooks.get("poststop", ()), state(self._record, "stopped", 0))


def run_in_turn(kind: str, hooks: Sequence[Hook], about: Mapping[str, Any]) -> None:
    """Raises :class:`HostError` at the first that fails."""
    for index, hook in enumerate(hooks):
        _run(f"{kind} hook #{index}", hook, about, -1)


def run_all(kind: str, hooks: Sequence[Hook], about: Mapping[str, Any]) -> list[str]:
    """Those after which everything goes on whether they fail or not; what to warn of."""
    warnings = []
    for index, hook in enumerate(hooks):
        try:
            _run(f"{kind} hook #{index}", hook, about, -1)
        except HawseError as failure:
            warnings.append(failure.sentence())
    return warnings


def _run(name: str, hook: Hook, about: Mapping[str, Any], namespace_of: int) -> None:
    """``namespace_of``: a descriptor of the process whose mount namespace the hook runs in, -1 for this process's.

    Raises :class:`HostError` with the end of what it wrote to stderr: engines show the sentence alone."""
    path, timeout = hook["path"], hook.get("timeout")
    # Without any, it has this process's, as under runc.
    pairs = [entry.partition("=") for entry in hook["env"]] if hook.get("env") is not None else None
    environment = None if pairs is None else {name: value for name, _, value in pairs}
    # Files, not pipes: what a hook leaves running may keep them open.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                list(hook.get("args") or [path]),
                executable=path,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_prepare(about["bundle"], namespace_of),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise HostError(f"error running {name}: {path}: {str(getattr(error, 'strerror', error)).lower()}") from None
        try:
            process.communicate(json.dumps(about).encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            raise HostError(f"error running {name}: {path}: hook ran past specified timeout of {timeout} s") from None
        finally:
            if process.returncode is None:
                # Its leader was not waited for, so the number is still this group's.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            code = process.returncode
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            raise HostError(f"error running {name}: {path}: {how}{_said(output.fileno())}")


def _prepare(bundle: str, namespace_of: int) -> Callable[[], None]:
    def prepare() -> None:
        if namespace_of >= 0:
            enter_mount_namespace(namespace_of)
        os.chdir(bundle)

    return prepare


def _said(fd: int) -> str:
    end = os.lseek(fd, 0, os.SEEK_END)
    text = os.pread(fd, _MAX_OUTPUT, max(0, end - _MAX_OUTPUT)).decode(errors="replace").strip()
    return f", output: {' '.join(text.split())}" if text else ""
