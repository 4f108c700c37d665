"""Bind PCI functions of the host to VFIO drivers, and restore their previous drivers and overrides.

:func:`bind` binds all of the functions or none of them. A record of each function's previous driver is on disk while
the function is bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hawse.errors import DeviceError, HawseError, UsageError
from hawse.vfio import sysfs
from hawse.vfio.bind import driver_moves, in_use, targets, variants
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind.driver_moves import REAL, Effects, HangError
from hawse.vfio.bind.records import Record
from hawse.vfio.bind.targets import Target
from hawse.vfio.driver_names import is_vfio

SECONDS = 30.0
#: Timeout in seconds for undoing a write that hangs. The kernel holds the function's lock during that write, so the
#: write that undoes it will almost certainly hang, too.
_HANG_SECONDS = 2.0
#: Seconds to wait until the user of a group has closed it, for functions that were bound for a sandbox. When a monitor
#: is killed, its QEMU dies after it, and the kernel closes QEMU's files last: it unpins the guest's memory, gigabytes
#: in a second, and resets each device, which may take a second to be ready again (PCI Express Base Specification 6.0,
#: section 6.6.1). Functions that the user has bound with `hawse bind` may stay open for hours: for those the error is
#: reported at once.
_CLOSE_SECONDS = 10.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class _Job:
    """A function to bind, the record that will be written for it, and the present record (None without one)."""

    target: Target
    record: Record
    previous: Record | None


# Large: three parameters are the host's functions, drivers and sandboxes, which tests replace.
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
    """Bind functions to a VFIO driver: ``driver``, or the one that suits each. Returns the records that were written.

    A function that has such a driver already is not changed, and no record is written for it. There is one exception:
    if its record says that it was bound for a sandbox that has died (``owner_lives`` is false for it), ``owner``
    becomes its owner. ``seconds`` is the limit for each wait: for a lock, for a module, for the writes of a function.

    Raises :class:`HawseError`, mostly :class:`DeviceError`. Either nothing was changed then, or all changes were
    undone; if undoing failed, the error says so.
    """
    if driver and not (bindings.is_driver(driver) and is_vfio(driver)):
        raise UsageError(f"{driver[:80]!r} is not a VFIO driver", hint="use vfio-pci, for example")
    names = [target.address for target in targets.choose(addresses, with_group=with_group, root=root)]
    with bindings.locked(directory, names, seconds=seconds):
        # Read the functions again: they may have changed before the locks were acquired.
        chosen = targets.choose(addresses, with_group=with_group, root=root)
        jobs: list[_Job] = []
        closed: set[int] = set()
        for target in chosen:
            previous = bindings.read(directory, target.address)
            if previous and previous.owner not in ("", owner) and owner_lives(previous.owner):
                raise DeviceError(
                    f"{target.address} is bound for the sandbox {previous.owner}",
                    hint=f"`hawse delete {previous.owner}` restores its driver",
                )
            if is_vfio(target.driver) and (not driver or variants.same(driver, target.driver)):
                if previous and previous.owner not in ("", owner):
                    jobs.append(_Job(target, replace(previous, vfio=target.driver, owner=owner), previous))
                continue
            record = _original(target, previous, owner)
            module = driver or variants.module_for(target.address, root=root)
            _check_closed(target.address, closed, deadline=0.0, root=root, effects=effects)
            in_use.check(target.address, root=root)
            if variants.same(module, variants.GENERIC):
                variants.check_denylist(target.address, root=root)
            jobs.append(_Job(target, replace(record, vfio=module), previous))
        jobs = [_with_driver(job, seconds=seconds, root=root, effects=effects) for job in jobs]
        _do(jobs, directory=directory, seconds=seconds, root=root, effects=effects)
    return [job.record for job in jobs]


def restore_drivers(
    records: Sequence[Record],
    *,
    directory: str,
    seconds: float = SECONDS,
    root: str = "",
    effects: Effects = REAL,
) -> None:
    """Restore the driver and the override that the records name, and delete the records.

    If the host no longer has a function, only its record is deleted. A function that is on record for another owner by
    now is skipped. If the group of a function is open, the function is not changed, which is a failure; for a function
    that was bound for a sandbox, this first waits for the sandbox's QEMU to end. ``seconds`` is the limit for each
    wait, as in :func:`bind`.

    All functions are tried. Then raises the :class:`HawseError` of the function that failed, or one error about all
    that failed. A function that failed keeps its record.
    """
    failures: list[HawseError] = []
    closed: set[int] = set()
    closed_by = time.monotonic() + min(seconds, _CLOSE_SECONDS)
    for record in records:
        try:
            with bindings.locked(directory, [record.address], seconds=seconds):
                if _has_another_owner(record, directory):
                    continue
                if targets.exists(record.address, root=root):
                    deadline = closed_by if record.owner else 0.0
                    _check_closed(record.address, closed, deadline=deadline, root=root, effects=effects)
                    driver_moves.restore(record, seconds=seconds, root=root, effects=effects)
                bindings.remove(directory, record.address)
        except HawseError as failure:
            failures.append(failure)
    if failures:
        raise together(failures)


def together(failures: Sequence[HawseError]) -> HawseError:
    """Combine failures into one error with the class and the hint of the first; a single failure is returned as is."""
    first = failures[0]
    if len(failures) == 1:
        return first
    return type(first)("; ".join(failure.message for failure in failures), hint=first.hint)


def _has_another_owner(record: Record, directory: str) -> bool:
    try:
        present = bindings.read(directory, record.address)
    except DeviceError:
        return False  # the file is damaged: use the record that the caller has
    return present is not None and present.owner != record.owner


def _original(target: Target, previous: Record | None, owner: str) -> Record:
    """The record of a function without a VFIO driver's name yet.

    If an earlier record holds the driver or the override from before hawse changed the function, these are kept.
    """
    driver, override = target.driver, target.override
    if previous and (not driver or is_vfio(driver)):
        driver = previous.driver
    if previous and override in (previous.vfio, previous.driver):
        override = previous.override
    return Record(target.address, driver, override, "", owner)


def _check_closed(address: str, closed: set[int], *, deadline: float, root: str, effects: Effects) -> None:
    """Wait until the function's group is closed and add the group to ``closed``.

    Raises :class:`DeviceError` if the group is still open at the deadline, a time of the monotonic clock.
    """
    group = sysfs.iommu_group(address, root=root)
    if group is None or group in closed:
        return
    while users := effects.holders(group):
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"{address}: its group {group} is in use: {', '.join(users)} has /dev/vfio/{group} open",
                hint="end that process first: the driver cannot be changed while the group is in use",
            )
        time.sleep(_POLL_SECONDS)
    closed.add(group)


def _with_driver(job: _Job, *, seconds: float, root: str, effects: Effects) -> _Job:
    """The job with the exact name of its VFIO driver, which is loaded if needed."""
    name = variants.provide(job.record.vfio, job.target.address, load=effects.load, seconds=seconds, root=root)
    return replace(job, record=replace(job.record, vfio=name))


def _do(jobs: Sequence[_Job], *, directory: str, seconds: float, root: str, effects: Effects) -> None:
    """Carry out the jobs. If one fails, undo it and those before it; an error of the undoing is added to the first."""
    started: list[_Job] = []
    try:
        for job in jobs:
            started.append(job)
            bindings.write(directory, job.record)
            if job.target.driver != job.record.vfio:
                driver_moves.move(job.target, job.record.vfio, seconds=seconds, root=root, effects=effects)
    except BaseException as failure:
        patience = min(seconds, _HANG_SECONDS) if isinstance(failure, HangError) else seconds
        problems: list[HawseError] = []
        for job in reversed(started):
            try:
                _undo(job, directory=directory, seconds=patience, root=root, effects=effects)
            except HawseError as problem:
                problems.append(problem)
            patience = seconds
        if not problems:
            raise
        cause = failure.message if isinstance(failure, HawseError) else type(failure).__name__
        kind = type(failure) if isinstance(failure, HawseError) else DeviceError
        raise kind(
            f"{cause}; undoing it failed as well: {together(problems).message}",
            hint="when the cause is fixed: `hawse unbind " + " ".join(job.target.address for job in started) + "`",
        ) from None


def _undo(job: _Job, *, directory: str, seconds: float, root: str, effects: Effects) -> None:
    original = replace(job.record, driver=job.target.driver, override=job.target.override)
    driver_moves.restore(original, seconds=seconds, root=root, effects=effects)
    if job.previous:
        bindings.write(directory, job.previous)
    else:
        bindings.remove(directory, job.target.address)
