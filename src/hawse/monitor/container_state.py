"""The state of a container: the content of its state.json, which only the monitor writes."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime

from hawse.errors import HawseError, StateError
from hawse.json_text import Document
from hawse.plan.model import ContainerPlan
from hawse.state.store import CREATED, CREATING, PAUSED, RUNNING, Store


class ContainerState:
    """The fields of state.json. After a change, call :meth:`write`, or :meth:`set_status`, which writes all fields."""

    def __init__(self, plan: ContainerPlan, store: Store, *, sandbox: str) -> None:
        """``sandbox`` is the id of the first container."""
        self._plan = plan
        self._store = store
        self._sandbox = sandbox
        self._created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self.status = CREATING
        #: Of the init process's proxy; the start time is field 22 of proc_pid_stat(5), 0 if the process has ended.
        self.pid, self.pid_start = 0, 0
        self.annotations = plan.annotations
        #: Entries for VFIO devices and network interfaces; None before they are known.
        self.devices: list[Document] | None = None
        self.interfaces: list[Document] | None = None
        #: The limits that `hawse update` compares with; None after an update that failed.
        self.limits: Document | None = None
        self.oom_kills = 0
        #: Why the VM ended before the container.
        self.failure: HawseError | None = None

    def create(self) -> None:
        """Write the state for the first time. Raises :class:`StateError` if the directory was removed."""
        try:
            self._store.write(self._document())
        except FileNotFoundError:
            raise StateError(f"container {self._plan.id} was deleted while it was created") from None

    def write(self) -> None:
        """Write the state, unless the directory was removed: then the state is not needed any more. Raises OSError."""
        with suppress(FileNotFoundError):
            self._store.write(self._document())

    def set_status(self, status: str) -> None:
        """Change the status, and write the state. Raises OSError."""
        self.status = status
        self.write()

    def check_alive(self) -> None:
        """Raise :class:`StateError` with runc's message unless the container is created, running or paused."""
        if self.status not in (CREATED, RUNNING, PAUSED):
            raise StateError(f"container not running: {self._plan.id} is {self.status}")

    def _document(self) -> Document:
        plan = self._plan
        document: Document = {
            "ociVersion": plan.oci_version,
            "id": plan.id,
            "pid": self.pid,
            "status": self.status,
            "bundle": plan.bundle,
            "rootfs": plan.rootfs,
            "created": self._created,
            "annotations": self.annotations,
            "owner": plan.owner,
            "pidStart": self.pid_start,
            "monitorPid": os.getpid(),
            "sandbox": self._sandbox,
            "oomScoreAdj": plan.oom_score_adj,
            "limits": self.limits,
        }
        optional = {
            "hooks": plan.hooks,
            "notify": plan.notify is not None and plan.notify.caller,
            "vfio": self.devices,
            "network": self.interfaces,
            "oomKills": self.oom_kills,
            "failure": self.failure.to_wire() if self.failure else None,
        }
        # An empty list of devices is content: the container has no device any more.
        return document | {name: value for name, value in optional.items() if value or isinstance(value, list)}
