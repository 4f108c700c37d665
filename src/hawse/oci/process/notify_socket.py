"""NOTIFY_SOCKET (sd_notify(3)): the host's socket that a container reports its state to. Pure.

A guest cannot connect to a socket of the host. The socket is named in one of two ways:

* The environment of the runtime's caller. runc mounts a directory with a private socket at /run/notify, sets the
  variable for the container, and passes the messages on (notify_socket.go).
* The container's environment, as a path below a bind mount. Podman does this for `--sdnotify=container`, with a socket
  that conmon reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hawse.json_text import Document
from hawse.link import agreed
from hawse.oci.document import is_bind, process_of, with_process

VARIABLE = "NOTIFY_SOCKET"
#: The same path as in runc (notify_socket.go, setupSpec()).
_DIRECTORY, _NAME = "/run/notify", "notify.sock"
_OPTIONS = ["bind", "nosuid", "noexec", "nodev"]


class Notify(msgspec.Struct, frozen=True, kw_only=True):
    """The host's socket, by a path or "@name" for an abstract one.

    ``below`` is the part of the path inside a mount of the container. A container can write there, so links in it are
    not followed. ``caller``: the variable comes from the runtime's caller.
    """

    host: str
    below: str = ""
    caller: bool = False


def in_mounts(process: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]], *, bundle: str) -> Notify | None:
    """The host's socket that the container's own variable leads to; None if no bind mount contains it."""
    path = value_of(process.get("env") or ())
    if not path.startswith("/"):
        return None
    path = os.path.normpath(path)
    for mount in reversed(mounts):  # a later mount covers earlier ones
        destination = os.path.normpath(mount["destination"])
        if path != destination and not path.startswith(f"{destination.rstrip('/')}/"):
            continue
        if not is_bind(mount) or not mount.get("source"):
            return None
        source = os.path.normpath(os.path.join(bundle, mount["source"]))
        return Notify(host=source, below=path[len(destination) :].strip("/"))
    return None


def value_of(environment: Sequence[str]) -> str:
    """The variable's value, "" if it is not set. The last of several counts, as in runc."""
    values = [entry.partition("=")[2] for entry in environment if entry.startswith(f"{VARIABLE}=")]
    return values[-1] if values else ""


def directory_of(container: str) -> str:
    """The guest's directory with the socket of a container."""
    return f"{agreed.NOTIFY}/{container}"


def serve(spec: Document, notify: Notify, *, container: str) -> Document:
    """Add a mount of the agent's socket to the specification, and for a socket of the ``caller`` the variable."""
    directory = directory_of(container)
    process = process_of(spec)
    if notify.caller:
        others = [entry for entry in process.get("env") or () if not entry.startswith(f"{VARIABLE}=")]
        spec = with_process(spec, env=[*others, f"{VARIABLE}={_DIRECTORY}/{_NAME}"])
        mount = {"destination": _DIRECTORY, "source": directory, "options": [*_OPTIONS, "ro"]}
    else:
        # Only over the host's socket, which the share shows and the guest cannot connect to. Other files stay visible.
        path = os.path.normpath(value_of(process["env"]))
        mount = {"destination": path, "source": f"{directory}/{_NAME}", "options": _OPTIONS}
    return spec | {"mounts": [*(spec.get("mounts") or ()), {"type": "bind", **mount}]}
