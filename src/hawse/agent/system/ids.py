"""Translate user and group ids of a container's user namespace to the guest's (user_namespaces(7))."""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

    Range = tuple[int, int, int]

#: An id that is not mapped, which a container sees as the overflow id. The last number, -1, is not a valid id.
UNMAPPED = 2**32 - 2
_ALL = ((0, 0, 2**32 - 1),)


class Ids:
    """Id mappings. Each range is the first id in the container, the first id in the guest, and the count."""

    __slots__ = ("_gids", "_uids", "mapped")

    def __init__(self, uids: Sequence[Range] = _ALL, gids: Sequence[Range] = _ALL, *, mapped: bool = False) -> None:
        """``mapped``: the container uses a user namespace."""
        self._uids = uids
        self._gids = gids
        self.mapped = mapped

    def uid(self, number: int) -> int:
        """The user id in the guest."""
        return _find(self._uids, number)

    def gid(self, number: int) -> int:
        """The group id in the guest."""
        return _find(self._gids, number)


#: The ids of a container without a user namespace.
SAME = Ids()


def of_spec(spec: Document) -> Ids:
    """The ids of a specification with a new user namespace, or without a user namespace."""
    linux = spec.get("linux") or {}
    if not any(namespace["type"] == "user" for namespace in linux.get("namespaces") or ()):
        return SAME
    uids, gids = (
        [(entry["containerID"], entry["hostID"], entry["size"]) for entry in linux.get(key) or ()]
        for key in ("uidMappings", "gidMappings")
    )
    return Ids(uids, gids, mapped=True)


def _find(ranges: Sequence[Range], number: int) -> int:
    for inside, outside, count in ranges:
        if inside <= number < inside + count:
            return outside + number - inside
    return UNMAPPED
