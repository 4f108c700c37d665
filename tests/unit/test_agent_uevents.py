"""Waiting for devices that the kernel announces: a check of sysfs decides, uevents only trigger the next check."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from hawse.agent.system.uevents import Uevents


@pytest.fixture
def uevents() -> Iterator[Uevents]:
    events = Uevents()
    yield events
    events.close()


def test_existing_device_is_not_awaited(uevents: Uevents) -> None:
    assert uevents.wait_until(lambda: True, deadline=0)


def test_check_after_the_deadline_is_the_last(uevents: Uevents) -> None:
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        return False

    assert not uevents.wait_until(look, deadline=time.monotonic())
    assert looks == [1]


def test_check_is_repeated_without_an_event(uevents: Uevents) -> None:
    """Events get lost when the socket overflows."""
    looks = iter((False, False, True))
    assert uevents.wait_until(lambda: next(looks), deadline=time.monotonic() + 20)


def test_event_during_a_check_causes_another_check_at_once(uevents: Uevents) -> None:
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        with uevents._changed:
            uevents._events += 1
        return looks == 100

    assert uevents.wait_until(look, deadline=time.monotonic() + 20)


def test_waiter_is_woken_by_an_event_of_the_kernel(uevents: Uevents) -> None:
    """A write to a device's uevent file makes the kernel announce the device again
    (Documentation/ABI/testing/sysfs-uevent)."""
    path = "/sys/class/net/lo/uevent"
    if not os.access(path, os.W_OK):
        pytest.skip("events cannot be made here")
    uevents.start()
    before = uevents._events
    done = threading.Event()

    def announce() -> None:
        while not done.wait(0.01):
            with open(path, "w") as file:
                file.write("change")

    source = threading.Thread(target=announce)
    source.start()
    try:
        assert uevents.wait_until(lambda: uevents._events >= before + 2, deadline=time.monotonic() + 20)
    finally:
        done.set()
        source.join()
