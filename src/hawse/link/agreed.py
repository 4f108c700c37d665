"""Constants that the host and the guest share."""

from __future__ import annotations

#: The version of the calls, replies and events in ``docs/link.md``.
PROTOCOL = 2
#: The name of the virtio-serial port, by which the guest finds it in /sys/class/virtio-ports.
PORT_NAME = "hawse.link"
#: An argument of the guest's /init: print :data:`PROBED` and power off. The host tries with it whether a guest runs.
PROBE, PROBED = "hawse-probe", "hawse agent: the guest runs"
#: The agent's directory in the guest.
RUN = "/run/hawse"
#: The directory that the host shares.
SHARE = f"{RUN}/share"
#: Binds of files below a directory that is already shared for another mount: ``<container>/<share>``.
BINDS = f"{RUN}/binds"
#: Sockets that represent sockets of the host: ``<container>/<share>``.
SOCKETS = f"{RUN}/sockets"
#: Sockets for notifications (sd_notify(3)): ``<container>/notify.sock``.
NOTIFY = f"{RUN}/notify"
#: File systems of shared memory, and of huge pages, by name.
MEMORY = f"{RUN}/shm"
HUGEPAGES = f"{RUN}/hugepages"
