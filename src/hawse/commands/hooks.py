"""Run the hooks on the host: programs that the bundle names, in the namespaces and the cgroup of the calling command.

docs/hooks.md says when each hook runs, and what exists on the host at that moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence

from hawse.errors import HawseError, HostError, StateError
from hawse.json_text import Document
from hawse.linux.processes import enter_mount_namespace
from hawse.oci.hooks import CREATION
from hawse.plan.model import ContainerPlan
from hawse.state.store import Store

_MAX_OUTPUT = 4096


def hook_state(record: Document, status: str, pid: int) -> Document:
    """The container's state as a hook reads it on stdin (runtime.md, State).

    ``record`` contains all fields except ``status`` and ``pid``. ``pid`` 0: the container has ended, so the field is
    omitted.
    """
    state = {
        "ociVersion": record["ociVersion"],
        "id": record["id"],
        "status": status,
        "pid": pid,
        "bundle": record["bundle"],
        "annotations": record.get("annotations") or {},
    }
    return state if pid else {key: value for key, value in state.items() if key != "pid"}


class CreationHooks:
    """Hooks during the creation of a container, and the poststop hooks if it fails."""

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
    def has_creation_hooks(self) -> bool:
        """Whether any hook runs before the container is created."""
        return any(self._hooks.get(kind) for kind in CREATION)

    def before(self, *, pid: int, sandbox: Store) -> None:
        """Run the hooks before the container's creation; createContainer hooks in the mount namespace of the monitor.

        ``pid``: the container's proxy. Raises :class:`HostError` at the first hook that fails, and :class:`StateError`
        if the monitor has ended.
        """
        self._begun = True
        state = hook_state(self._record, "creating", pid)
        monitor = sandbox.open_monitor(sandbox.read().get("monitorPid", 0))
        if monitor < 0:
            raise StateError(f"container not running: {sandbox.name}: its monitor has ended")
        try:
            for kind in CREATION:
                for index, hook in enumerate(self._hooks.get(kind, ())):
                    _run(f"{kind} hook #{index}", hook, state, monitor if kind == "createContainer" else -1)
        finally:
            os.close(monitor)

    def undo(self) -> list[str]:
        """Run the poststop hooks after a failed creation, if other hooks have run before (runtime.md, Lifecycle).

        Returns warnings.
        """
        if not self._begun:
            return []
        return run_all("poststop", self._hooks.get("poststop", ()), hook_state(self._record, "stopped", 0))


def run_in_order(kind: str, hooks: Sequence[Document], state: Document) -> None:
    """Run the hooks in order. Raises :class:`HostError` at the first that fails."""
    for index, hook in enumerate(hooks):
        _run(f"{kind} hook #{index}", hook, state, -1)


def run_all(kind: str, hooks: Sequence[Document], state: Document) -> list[str]:
    """Run all hooks, also after one that fails. Returns a warning for each failure."""
    warnings = []
    for index, hook in enumerate(hooks):
        try:
            _run(f"{kind} hook #{index}", hook, state, -1)
        except HawseError as failure:
            warnings.append(failure.sentence())
    return warnings


def _run(name: str, hook: Document, state: Document, mount_namespace_of: int) -> None:
    """Run one hook with ``state`` on its stdin.

    ``mount_namespace_of``: a pidfd of the process in whose mount namespace the hook runs; -1: this process. The text of
    the :class:`HostError` ends with the end of the hook's output, since engines show nothing but this text.
    """
    path, timeout = hook["path"], hook.get("timeout")
    # A hook without the field inherits this process's environment, as in runc.
    pairs = [entry.partition("=") for entry in hook["env"]] if hook.get("env") is not None else None
    environment = None if pairs is None else {name: value for name, _, value in pairs}
    # A file, not a pipe: a background process of the hook may keep a pipe open for ever.
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
                preexec_fn=_prepare(state["bundle"], mount_namespace_of),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise HostError(f"error running {name}: {path}: {str(getattr(error, 'strerror', error)).lower()}") from None
        try:
            process.communicate(json.dumps(state).encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            raise HostError(f"error running {name}: {path}: hook ran past specified timeout of {timeout} s") from None
        finally:
            if process.returncode is None:
                # The pid cannot have been reused as a process group: the leader was not waited for yet.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            code = process.returncode
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            raise HostError(f"error running {name}: {path}: {how}{_output(output.fileno())}")


def _prepare(bundle: str, mount_namespace_of: int) -> Callable[[], None]:
    def prepare() -> None:
        if mount_namespace_of >= 0:
            enter_mount_namespace(mount_namespace_of)
        os.chdir(bundle)

    return prepare


def _output(fd: int) -> str:
    end = os.lseek(fd, 0, os.SEEK_END)
    text = os.pread(fd, _MAX_OUTPUT, max(0, end - _MAX_OUTPUT)).decode(errors="replace").strip()
    return f", output: {' '.join(text.split())}" if text else ""
