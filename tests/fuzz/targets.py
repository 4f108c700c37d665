"""The table of targets, by name: each parser on the host whose input a guest, or a QEMU that it took over, controls."""

from __future__ import annotations

from tests.fuzz import sandbox, streams, values

TARGETS = {target.name: target for target in (*streams.TARGETS, *values.TARGETS, *sandbox.TARGETS)}
