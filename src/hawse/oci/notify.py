"""Where a container reports its state to the host's service manager: NOTIFY_SOCKET (sd_notify(3)). Pure.

There are two ways, and a virtual machine needs help with both, since a socket of the host cannot be connected to from
another kernel:

* The runtime's caller has the variable. runc mounts a directory with a socket of its own at /run/notify, sets the
  variable for the container, and passes on what arrives there (notify_socket.go).
* The engine has put a socket among the container's mounts, and names it in the container's own variable. Podman does it
  for `--sdnotify=container`, with a socket that conmon reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

VARIABLE = "NOTIFY_SOCKET"
#: As runc has it (notify_socket.go, setupSpec()).
_DIRECTORY, _NAME = "/run/notify", "notify.sock"
#: Below it the agent has a directory for each container (:mod:`hawse.agent.notify`).
_GUEST_DIRECTORY = "/run/hawse/notify"
_OPTIONS = ["bind", "nosuid", "noexec", "nodev"]


class Notify(msgspec.Struct, frozen=True, kw_only=True):
    """The host's socket, by a path or "@name" for an abstract one.

    ``below``, of a socket among the container's mounts: the part of the path inside the mount. A container can write
    there, so links in it are not followed. ``caller``: the variable is the runtime's caller's.
    """

    host: str
    below: str = ""
    caller: bool = False


def in_mounts(process: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]], *, bundle: str) -> Notify | None:
    """The host's socket that the container's own variable leads to; None where no bind mount has it."""
    path = value_of(process.get("env") or ())
    if not path.startswith("/"):
        return None
    path = os.path.normpath(path)
    for mount in reversed(mounts):  # a later one covers those before it
        destination = os.path.normpath(mount["destination"])
        if path != destination and not path.startswith(f"{destination.rstrip('/')}/"):
            continue
        bind = mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))
        if not bind or not mount.get("source"):
            return None
        source = os.path.normpath(os.path.join(bundle, mount["source"]))
        return Notify(host=source, below=path[len(destination) :].strip("/"))
    return None


def value_of(environment: Sequence[str]) -> str:
    """The variable's value, "" where it is not set. Of several the last one counts, as in runc."""
    found = [entry.partition("=")[2] for entry in environment if entry.startswith(f"{VARIABLE}=")]
    return found[-1] if found else ""


def directory_of(container: str) -> str:
    """Where the guest has the socket of a container."""
    return f"{_GUEST_DIRECTORY}/{container}"


def serve(spec: dict[str, Any], notify: Notify, *, container: str) -> None:
    """Have the agent's socket in the container, in place."""
    directory = directory_of(container)
    process = spec["process"]
    if notify.caller:
        others = [entry for entry in process.get("env") or () if not entry.startswith(f"{VARIABLE}=")]
        process["env"] = [*others, f"{VARIABLE}={_DIRECTORY}/{_NAME}"]
        mount = {"destination": _DIRECTORY, "source": directory, "options": [*_OPTIONS, "ro"]}
    else:
        # Over the host's socket alone, which the share shows and nobody can connect to: what is beside it stays.
        path = os.path.normpath(value_of(process["env"]))
        mount = {"destination": path, "source": f"{directory}/{_NAME}", "options": _OPTIONS}
    spec["mounts"] = [*(spec.get("mounts") or ()), {"type": "bind", **mount}]
