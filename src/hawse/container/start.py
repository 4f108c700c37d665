"""Starting a created container, and the hooks after it. Standard library only: `start` is a hot verb."""

from __future__ import annotations

from hawse.container.client import call
from hawse.errors import StateError
from hawse.sandbox.state import STOPPED, Store


def start(store: Store) -> list[str]:
    """Raises :class:`StateError`; what to warn of."""
    state = store.read()
    if state["status"] == STOPPED:
        raise StateError(
            f"cannot start a container that has stopped: {store.name}", hint="delete it and create it anew"
        )
    notes = call(store, "start", {})
    warnings = [str(text) for level, text in notes if level == "warning"] if isinstance(notes, list) else []
    hooks = state.get("hooks", {}).get("poststart")
    if not hooks:
        return warnings
    from hawse.container.hooks import run_all
    from hawse.container.hooks import state as about

    return [*warnings, *run_all("poststart", hooks, about(state, "running", state["pid"]))]
