"""Owners of a mount and of a user namespace: mounts[].uidMappings, linux.uidMappings and their groups'. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from hawse.errors import ConfigError

Range = tuple[int, int, int]
"""The first id inside, the first outside, and their count."""
Maps = tuple[Sequence[Range], Sequence[Range]]
"""Of users and of groups."""
_FIELDS = ("uidMappings", "gidMappings")
_OPTIONS = {"idmap": False, "ridmap": True}
#: Linux include/linux/user_namespace.h, UID_GID_MAP_MAX_EXTENTS. The last id, -1, is none.
_MOST_RANGES, _END = 340, 2**32 - 1


class IdMap(msgspec.Struct, frozen=True):
    """Owners of a mount: ids inside are those of its file system, ids outside those that the mount shows.

    ``recursive``: mounts below it show the same.
    """

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]
    recursive: bool = False

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """Whom the mount shows for an owner in its file system; one without a mapping is nobody."""
        return _outside(self.uids, uid), _outside(self.gids, gid)


def of_linux(linux: Mapping[str, Any]) -> Maps:
    """The mappings of a container's user namespace."""
    uids, gids = (_ranges(linux.get(field)) for field in _FIELDS)
    return uids, gids


def as_field(ranges: Sequence[Range]) -> list[dict[str, int]]:
    """Ranges as config.json has them."""
    return [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in ranges]


def take_out(where: str, mount: dict[str, Any], container: Maps, *, bind: bool) -> tuple[dict[str, Any], IdMap | None]:
    """The mount without what asks for a mapping, and the mapping; None for none.

    Without mappings of its own, a mount with the option idmap or ridmap has those of the ``container``'s user namespace
    (config.md, mounts). Raises :class:`ConfigError`; ``where`` names the mount.
    """
    for option in mount.get("options") or ():
        if option.startswith(("idmap=", "ridmap=")):  # crun's own
            raise ConfigError(
                f"{where}.options: {option[:80]!r} is no option of the specification",
                hint="give mounts[].uidMappings and gidMappings",
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
            hint="give mounts[].uidMappings and gidMappings, or a user namespace with mappings",
        )
    return rest, IdMap(tuple(uids), tuple(gids), any(_OPTIONS[option] for option in options))


def _ranges(mappings: Sequence[Mapping[str, int]] | None) -> list[Range]:
    return [(entry["containerID"], entry["hostID"], entry["size"]) for entry in mappings or () if entry["size"]]


def _outside(ranges: Sequence[Range], number: int) -> int:
    found = _inside(ranges, number)
    return 65534 if found is None else found  # /proc/sys/kernel/overflowuid


def check_user_map(name: str, container: Maps, user: Mapping[str, Any]) -> None:
    """Whether the kernel takes the mappings of a container's user namespace, and whether they have its ``user``
    (user_namespaces(7)). Raises :class:`ConfigError`; ``name`` is the configuration's."""
    groups = {"gid": [user.get("gid") or 0], "additionalGids": user.get("additionalGids") or []}
    for field, ranges, wanted in (
        ("uidMappings", container[0], {"uid": [user.get("uid") or 0]}),
        ("gidMappings", container[1], groups),
    ):
        where = f"{name}: linux.{field}"
        if len(ranges) > _MOST_RANGES:
            raise ConfigError(f"{where}: {len(ranges)} ranges, and the kernel takes {_MOST_RANGES}", hint="join some")
        for inside, outside, count in ranges:
            if max(inside, outside) + count > _END:
                raise ConfigError(
                    f"{where}: {inside} to {outside}, {count} ids: ids end at {_END - 1}", hint="lower it"
                )
        for which, starts in (("containerID", 0), ("hostID", 1)):
            ordered = sorted((entry[starts], entry[2]) for entry in ranges)
            for (first, count), (second, _) in pairwise(ordered):
                if first + count > second:
                    raise ConfigError(f"{where}: two ranges have the {which} {second}", hint="give each id once")
        if _inside(ranges, 0) is None:
            raise ConfigError(f"{where}: nothing is mapped to 0, root of the user namespace", hint="map containerID 0")
        for user_field, ids in wanted.items():
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
