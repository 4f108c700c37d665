"""Functions of the host given to VFIO, and given back exactly. All or nothing, with a record of what was before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hawse.errors import DeviceError, HawseError, UsageError
from hawse.vfio import bindings, busy, moves, sysfs, targets, variants
from hawse.vfio.bindings import Record
from hawse.vfio.moves import REAL, Effects, HangError
from hawse.vfio.targets import Target

SECONDS = 30.0
#: Where a write hangs, the function's lock is held in the kernel, and undoing is all but sure to hang as well.
_SECONDS_WHERE_ONE_HANGS = 2.0
#: How long who has a group open may take to let it go, where a function was bound for a sandbox. QEMU dies with a
#: monitor that was killed, but only after it, and the kernel then closes its files last: it unpins the guest's memory,
#: gigabytes in a second, and resets each device, which may take a second to be ready again (PCI Express Base
#: Specification 6.0, section 6.6.1). What the user has bound himself may be open for hours: there it is told at once.
_LEAVING = 10.0
_LOOK_AGAIN = 0.05  # seconds


@dataclass(frozen=True)
class _Job:
    """A function to bind, what will be recorded of it, and what is on record now."""

    target: Target
    record: Record
    previous: Record | None


def bind(
    addresses: Sequence[str],
    *,
    directory: str,
    owner: str = "",
    driver: str = "",
    with_group: bool = False,
    seconds: float = SECONDS,
    root: str = "",
    owner_lives: Callable[[str], bool] = lambda _owner: True,
    effects: Effects = REAL,
) -> list[Record]:
    """Give functions to a VFIO driver, ``driver`` or the one that suits each. Returns the records that were made.

    A function that has such a driver is left alone and has no record made, unless one tells that it was bound for a
    sandbox that does not live, as ``owner_lives`` knows: then it becomes ``owner``'s. ``seconds`` bound each wait: for
    a lock, a module, the writes of a function. All is refused before anything is touched, or done, or undone: raises
    :class:`HawseError`, mostly a :class:`DeviceError`.
    """
    if driver and not (bindings.is_driver(driver) and variants.is_vfio(driver)):
        raise UsageError(f"{driver[:80]!r} is no VFIO driver", hint="vfio-pci is one")
    names = [target.address for target in targets.choose(addresses, with_group=with_group, root=root)]
    with bindings.locked(directory, names, seconds=seconds):
        # Read again: it may have changed before the lock was had.
        chosen = targets.choose(addresses, with_group=with_group, root=root)
        jobs: list[_Job] = []
        closed: set[int] = set()
        for target in chosen:
            previous = bindings.read(directory, target.address)
            if previous and previous.owner not in ("", owner) and owner_lives(previous.owner):
                raise DeviceError(
                    f"{target.address} is bound for the sandbox {previous.owner}",
                    hint=f"`hawse delete {previous.owner}` gives it back",
                )
            if variants.is_vfio(target.driver) and (not driver or variants.same(driver, target.driver)):
                if previous and previous.owner not in ("", owner):
                    jobs.append(_Job(target, replace(previous, vfio=target.driver, owner=owner), previous))
                continue
            record = _before(target, previous, owner)
            module = driver or variants.module_for(target.address, root=root)
            _check_closed(target.address, closed, deadline=0.0, root=root, effects=effects)
            busy.check(target.address, root=root)
            if variants.same(module, variants.GENERIC):
                variants.check_denylist(target.address, root=root)
            jobs.append(_Job(target, replace(record, vfio=module), previous))
        jobs = [_with_driver(job, seconds=seconds, root=root, effects=effects) for job in jobs]
        _do(jobs, directory=directory, seconds=seconds, root=root, effects=effects)
    return [job.record for job in jobs]


def give_back(
    records: Sequence[Record],
    *,
    directory: str,
    seconds: float = SECONDS,
    root: str = "",
    effects: Effects = REAL,
) -> None:
    """Make functions as their records say that they were, and delete the records; one that is gone has nothing to get.

    Never while a group is open, nor what is on record for somebody else by now; a sandbox's QEMU that is just ending is
    waited for. ``seconds`` bound each wait, as of :func:`bind`. All are tried; then raises the :class:`HawseError` of
    the one that failed, or one that tells of all that did. A function that failed keeps its record.
    """
    failures: list[HawseError] = []
    closed: set[int] = set()
    gone_by = time.monotonic() + min(seconds, _LEAVING)
    for record in records:
        try:
            with bindings.locked(directory, [record.address], seconds=seconds):
                if _is_anothers(record, directory):
                    continue
                if targets.exists(record.address, root=root):
                    deadline = gone_by if record.owner else 0.0
                    _check_closed(record.address, closed, deadline=deadline, root=root, effects=effects)
                    moves.restore(record, seconds=seconds, root=root, effects=effects)
                bindings.remove(directory, record.address)
        except HawseError as failure:
            failures.append(failure)
    if failures:
        raise together(failures)


def together(failures: Sequence[HawseError]) -> HawseError:
    """Several failures as one, of the first one's kind and with its hint; the first one itself where it is alone."""
    first = failures[0]
    if len(failures) == 1:
        return first
    return type(first)("; ".join(failure.message for failure in failures), hint=first.hint)


def _is_anothers(record: Record, directory: str) -> bool:
    try:
        now = bindings.read(directory, record.address)
    except DeviceError:
        return False  # damaged: this record is the better one
    return now is not None and now.owner != record.owner


def _before(target: Target, previous: Record | None, owner: str) -> Record:
    """What to record of a function. Where a record tells of what it was before hawse changed it, that stays true."""
    driver, override = target.driver, target.override
    if previous and (not driver or variants.is_vfio(driver)):
        driver = previous.driver
    if previous and override in (previous.vfio, previous.driver):
        override = previous.override
    return Record(target.address, driver, override, "", owner)


def _check_closed(address: str, closed: set[int], *, deadline: float, root: str, effects: Effects) -> None:
    """Raise :class:`DeviceError` when its group is open at the deadline. One that is not is then in ``closed``."""
    group = sysfs.iommu_group(address, root=root)
    if group is None or group in closed:
        return
    while users := effects.holders(group):
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"{address}: its group {group} is open: {', '.join(users)} has /dev/vfio/{group}",
                hint="end it first: a driver cannot change under its user",
            )
        time.sleep(_LOOK_AGAIN)
    closed.add(group)


def _with_driver(job: _Job, *, seconds: float, root: str, effects: Effects) -> _Job:
    """The job with a driver that the kernel has, by its exact name."""
    name = variants.provide(job.record.vfio, job.target.address, load=effects.load, seconds=seconds, root=root)
    return replace(job, record=replace(job.record, vfio=name))


def _do(jobs: Sequence[_Job], *, directory: str, seconds: float, root: str, effects: Effects) -> None:
    """Carry the jobs out; when one fails, undo it and those before it, and raise what tells of both."""
    begun: list[_Job] = []
    try:
        for job in jobs:
            begun.append(job)
            bindings.write(directory, job.record)
            if job.target.driver != job.record.vfio:
                moves.move(job.target, job.record.vfio, seconds=seconds, root=root, effects=effects)
    except BaseException as failure:
        patience = min(seconds, _SECONDS_WHERE_ONE_HANGS) if isinstance(failure, HangError) else seconds
        problems: list[HawseError] = []
        for job in reversed(begun):
            try:
                _undo(job, directory=directory, seconds=patience, root=root, effects=effects)
            except HawseError as problem:
                problems.append(problem)
            patience = seconds
        if not problems:
            raise
        told = failure.message if isinstance(failure, HawseError) else type(failure).__name__
        kind = type(failure) if isinstance(failure, HawseError) else DeviceError
        raise kind(
            f"{told}; and undoing it failed: {together(problems).message}",
            hint="when that is mended: `hawse unbind " + " ".join(job.target.address for job in begun) + "`",
        ) from None


def _undo(job: _Job, *, directory: str, seconds: float, root: str, effects: Effects) -> None:
    was = replace(job.record, driver=job.target.driver, override=job.target.override)
    moves.restore(was, seconds=seconds, root=root, effects=effects)
    if job.previous:
        bindings.write(directory, job.previous)
    else:
        bindings.remove(directory, job.target.address)
