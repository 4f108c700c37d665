"""All groups of cases."""

from __future__ import annotations

from tests.conformance import devices, life, limits, mounts, namespaces, process, refusals, security

GROUPS = [
    *process.GROUPS,
    *mounts.GROUPS,
    *namespaces.GROUPS,
    *devices.GROUPS,
    *limits.GROUPS,
    *security.GROUPS,
    *life.GROUPS,
    *refusals.GROUPS,
]
