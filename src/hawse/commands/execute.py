"""Start another process in a running container."""

from __future__ import annotations

import os

from hawse.commands.client import call, check_version
from hawse.commands.host_process import IoOptions, check_console, start_proxy
from hawse.commands.spawn import ProxyProcess
from hawse.errors import StateError
from hawse.json_text import Document
from hawse.linux import attributes
from hawse.state.store import PAUSED, RUNNING, Store


def execute(store: Store, process: Document, io_options: IoOptions) -> ProxyProcess:
    """Start the process; returns its proxy. Raises :class:`StateError` if the container does not run."""
    check_console(io_options, terminal=bool(process.get("terminal")))
    state = store.read()
    if state["status"] == PAUSED:
        raise StateError(f"cannot exec in a paused container: {store.name}", hint="`hawse resume` it first")
    if state["status"] != RUNNING:
        raise StateError(f"cannot exec in a container that is not running: {store.name} is {state['status']}")
    check_version(store, "exec")  # before a proxy is connected
    key = os.urandom(16).hex()
    # The container's value; that of the process's JSON file is ignored, as in runc (utils_linux.go, startContainer()).
    proxy = start_proxy(store, key, process, io_options, oom_score_adj=state.get("oomScoreAdj"))
    try:
        caller = {
            "rlimits": attributes.rlimits(),
            "oom_score_adj": attributes.oom_score_adj(),
            "umask": attributes.umask(),
        }
        call(store, "exec", {"key": key, "process": process, "caller": caller})
    except BaseException:
        proxy.abort()
        raise
    return proxy
