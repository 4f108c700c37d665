"""User and group ids of a container in its user namespace, as the guest's (user_namespaces(7))."""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

    Range = tuple[int, int, int]

#: An id that no mapping has, so that the container sees nobody: the last one, -1, is none.
UNMAPPED = 2**32 - 2
_ALL = ((0, 0, 2**32 - 1),)


class Ids:
    """Ranges of the first id in the container, the first in the guest, and their count."""

    __slots__ = ("_gids", "_uids", "mapped")

    def __init__(self, uids: Sequence[Range] = _ALL, gids: Sequence[Range] = _ALL, *, mapped: bool = False) -> None:
        """``mapped``: the container has a user namespace."""
        self._uids = uids
        self._gids = gids
        self.mapped = mapped

    def uid(self, number: int) -> int:
        """The guest's user id."""
        return _find(self._uids, number)

    def gid(self, number: int) -> int:
        """The guest's group id."""
        return _find(self._gids, number)


#: Of a container without a user namespace.
SAME = Ids()


def of_spec(spec: Document) -> Ids:
    """Those of a specification whose user namespace is a new one, or that has none."""
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
