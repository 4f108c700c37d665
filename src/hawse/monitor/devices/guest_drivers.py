"""Functions that the guest's own drivers have: what its agent says of them, checked, and put into a specification.

The guest is hostile: its names are printed and its numbers are given back to it, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hawse.errors import VmError
from hawse.plan.model import PlugStep
from hawse.state.store import GUEST_DEVICES

_NAME = re.compile(r"[A-Za-z0-9_.:!-]{1,64}")
_NODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}(/[A-Za-z0-9_.:-]{1,64}){0,3}")
_MOST = 256
_MAX_NUMBER = 2**20


@dataclass(frozen=True)
class Native:
    """What stands for one function: its driver, its network interfaces, and nodes of path, type, major and minor."""

    driver: str
    interfaces: tuple[str, ...] = ()
    nodes: tuple[tuple[str, str, int, int], ...] = field(default=())

    @property
    def names(self) -> list[str]:
        """Interfaces and the names of devices."""
        return [*self.interfaces, *(path.removeprefix("/dev/") for path, *_ in self.nodes)]


def read_answer(plug: PlugStep, answer: object) -> Native:
    """The agent's answer. Raises :class:`VmError` for one that makes no sense."""
    try:
        if not isinstance(answer, dict):
            raise ValueError("no mapping")
        interfaces, nodes = answer.get("interfaces"), answer.get("nodes")
        if not isinstance(interfaces, list) or not isinstance(nodes, list):
            raise ValueError("no lists of names")
        if len(interfaces) > _MOST or len(nodes) > _MOST:
            raise ValueError("too many names")
        return Native(
            driver=_match(_NAME, answer.get("driver")),
            interfaces=tuple(_match(_NAME, name) for name in interfaces),
            nodes=tuple(_node(node) for node in nodes),
        )
    except ValueError as error:
        raise VmError(
            f"{plug.label}: the guest reports nothing usable of its driver: {error}",
            hint="it is not to be trusted: delete the container",
        ) from None


def with_nodes(
    spec: dict[str, Any], plugs: Sequence[PlugStep], natives: Mapping[str, Native], rights: Mapping[int, dict[str, int]]
) -> dict[str, Any]:
    """The specification with the nodes of these functions, with the rights that their group's node was to have."""
    linux = dict(spec.get("linux") or {})
    resources = dict(linux.get("resources") or {})
    devices, rules = list(linux.get("devices") or ()), list(resources.get("devices") or ())
    for plug in plugs:
        for path, kind, major, minor in natives[plug.device].nodes if plug.device in natives else ():
            numbers = {"type": kind, "major": major, "minor": minor}
            devices.append({"path": path, **rights.get(plug.group, {}), **numbers})
            rules.append({"allow": True, "access": "rwm", **numbers})
    return spec | {"linux": linux | {"devices": devices, "resources": resources | {"devices": rules}}}


def annotation(plugs: Sequence[PlugStep], natives: Mapping[str, Native]) -> dict[str, str]:
    """The state's annotation; empty where no function is in this mode."""
    names = {plug.host or plug.guest_address: natives[plug.device].names for plug in plugs if plug.device in natives}
    return {GUEST_DEVICES: json.dumps(names)} if names else {}


def _node(node: object) -> tuple[str, str, int, int]:
    if not isinstance(node, list) or len(node) != 4:
        raise ValueError("no node")
    name, kind, major, minor = node
    text = _match(_NODE, name)
    if ".." in text.split("/") or kind not in ("b", "c"):
        raise ValueError("no node")
    return f"/dev/{text}", str(kind), _number(major), _number(minor)


def _number(number: object) -> int:
    if type(number) is not int or not 0 <= number < _MAX_NUMBER:
        raise ValueError("no number of a node")
    return number


def _match(pattern: re.Pattern[str], text: object) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError("no name")
    return text
