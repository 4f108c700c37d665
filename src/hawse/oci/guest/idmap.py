"""ID mappings of mounts and user namespaces: uidMappings and gidMappings of mounts[] and linux. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from hawse.errors import ConfigError
from hawse.json_text import Document

Range = tuple[int, int, int]
"""The first ID inside, the first ID outside, and the number of IDs."""
Maps = tuple[Sequence[Range], Sequence[Range]]
"""The ranges of user IDs and of group IDs."""
_FIELDS = ("uidMappings", "gidMappings")
_OPTIONS = {"idmap": False, "ridmap": True}
#: Linux include/linux/user_namespace.h, UID_GID_MAP_MAX_EXTENTS. The ID 2³² - 1 (-1) is not valid.
_MOST_RANGES, _END = 340, 2**32 - 1


class IdMap(msgspec.Struct, frozen=True):
    """The ID mapping of a mount: inside are the IDs of its file system, outside those that the mount shows.

    ``recursive``: the mapping also applies to the mounts below it.
    """

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]
    recursive: bool = False

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """The owners that the mount shows for owners in its file system; 65534 (nobody) for unmapped ones."""
        return _outside(self.uids, uid), _outside(self.gids, gid)


def of_linux(linux: Mapping[str, Any]) -> Maps:
    """The mappings of a container's user namespace."""
    uids, gids = (_ranges(linux.get(field)) for field in _FIELDS)
    return uids, gids


def as_field(ranges: Sequence[Range]) -> list[dict[str, int]]:
    """Convert ranges to the format of config.json."""
    return [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in ranges]


def take_out(where: str, mount: Document, container: Maps, *, bind: bool) -> tuple[Document, IdMap | None]:
    """Return the mount without its ID mapping, and the mapping, or None if the mount has none.

    A mount with the option idmap or ridmap but without mappings uses those of the ``container``'s user namespace
    (config.md, mounts). ``where`` names the mount in errors. Raises :class:`ConfigError`.
    """
    for option in mount.get("options") or ():
        if option.startswith(("idmap=", "ridmap=")):  # an extension of crun
            raise ConfigError(
                f"{where}.options: {option[:80]!r} is not an option of the specification",
                hint="set mounts[].uidMappings and gidMappings",
            )
    options = [option for option in mount.get("options") or () if option in _OPTIONS]
    uids, gids = (_ranges(mount.get(field)) for field in _FIELDS)
    rest = {key: value for key, value in mount.items() if key not in _FIELDS}
    if options:
        rest["options"] = [option for option in mount["options"] if option not in _OPTIONS]
    if not (options or uids or gids):
        return rest, None
    field = f"{where}.options: {options[0]}" if options else f"{where}.uidMappings"
    if not bind:
        raise ConfigError(f"{field}: only a bind mount can map owners", hint="remove it")
    if not (uids or gids):
        uids, gids = (list(ranges) for ranges in container)
    if not uids or not gids:
        raise ConfigError(
            f"{field}: the mount needs mappings of users and of groups",
            hint="set mounts[].uidMappings and gidMappings, or add a user namespace with mappings",
        )
    return rest, IdMap(tuple(uids), tuple(gids), any(_OPTIONS[option] for option in options))


def _ranges(mappings: Sequence[Mapping[str, int]] | None) -> list[Range]:
    return [(entry["containerID"], entry["hostID"], entry["size"]) for entry in mappings or () if entry["size"]]


def _outside(ranges: Sequence[Range], number: int) -> int:
    mapped = _inside(ranges, number)
    return 65534 if mapped is None else mapped  # /proc/sys/kernel/overflowuid


def check_user_map(name: str, container: Maps, user: Mapping[str, Any]) -> None:
    """Check that the kernel accepts the mappings of a container's user namespace, and that they include its ``user``
    (user_namespaces(7)). ``name`` is the document's name for errors. Raises :class:`ConfigError`."""
    groups = {"gid": [user.get("gid") or 0], "additionalGids": user.get("additionalGids") or []}
    for field, ranges, required in (
        ("uidMappings", container[0], {"uid": [user.get("uid") or 0]}),
        ("gidMappings", container[1], groups),
    ):
        where = f"{name}: linux.{field}"
        if len(ranges) > _MOST_RANGES:
            raise ConfigError(
                f"{where}: {len(ranges)} ranges, and the kernel accepts {_MOST_RANGES}", hint="merge adjacent ranges"
            )
        for inside, outside, count in ranges:
            if max(inside, outside) + count > _END:
                raise ConfigError(
                    f"{where}: {inside} to {outside}, {count} IDs: the last valid ID is {_END - 1}", hint="lower it"
                )
        for which, starts in (("containerID", 0), ("hostID", 1)):
            ordered = sorted((entry[starts], entry[2]) for entry in ranges)
            for (first, count), (second, _) in pairwise(ordered):
                if first + count > second:
                    raise ConfigError(f"{where}: two ranges have the {which} {second}", hint="map each ID once")
        if _inside(ranges, 0) is None:
            raise ConfigError(f"{where}: 0, root of the user namespace, is not mapped", hint="map containerID 0")
        for user_field, ids in required.items():
            for number in ids:
                if _inside(ranges, number) is None:
                    raise ConfigError(
                        f"{name}: process.user.{user_field}: {number} is not mapped in the user namespace",
                        hint=f"add it to linux.{field}, as containerID",
                    )


def _inside(ranges: Sequence[Range], number: int) -> int | None:
    return next(
        (outside + number - inside for inside, outside, count in ranges if inside <= number < inside + count), None
    )
