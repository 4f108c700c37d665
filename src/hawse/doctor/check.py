"""The result of a check of `hawse doctor`, and the verdict on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

OK, WARNING, MISSING = "ok", "warning", "missing"
#: Exit statuses. 1 is also the exit status of every other error of hawse.
READY, NOT_READY, CONTAINERS_ONLY = 0, 1, 2


@dataclass(frozen=True)
class Finding:
    """One line of the report: the name of the check, its verdict, a sentence about it, and a remedy ("" for none).

    ``needed`` is "containers" if no container runs without it, "devices" if only passing devices of the host needs it,
    and "" if it is only information.
    """

    name: str
    verdict: str
    found: str
    remedy: str = ""
    needed: str = ""

    @property
    def sentence(self) -> str:
        """The name and the sentence, which may begin with the name: it is not repeated."""
        return f"{self.name}: {self.found.removeprefix(f'{self.name} ')}"


@dataclass(frozen=True)
class Readiness:
    """The verdict on the host.

    ``containers`` and ``devices`` are the reasons why it is not ready for containers, and for passing its own devices;
    "" if it is. ``emulated``: the configuration declares emulated groups, so devices of the host are not needed.
    """

    containers: str
    devices: str
    emulated: bool

    @property
    def status(self) -> int:
        """The exit status."""
        if self.containers:
            return NOT_READY
        return CONTAINERS_ONLY if self.devices and not self.emulated else READY

    @property
    def sentence(self) -> str:
        """The last line of the report."""
        if self.containers:
            return f"not ready for containers: {self.containers}"
        if not self.devices:
            return "ready for containers and for devices of this host"
        emulated = " with emulated groups" if self.emulated else ""
        return f"ready for containers{emulated}; not for devices of this host: {self.devices}"


def readiness(findings: Sequence[Finding], *, emulated: bool) -> Readiness:
    """Determine from the findings what a host is ready for."""
    containers, devices = (
        "; ".join(f.sentence for f in findings if f.verdict == MISSING and f.needed == need)
        for need in ("containers", "devices")
    )
    return Readiness(containers, devices, emulated)


def without_devices(findings: Sequence[Finding]) -> list[Finding]:
    """The findings for a host that can only pass emulated groups: no check of the host's devices fails or warns."""
    return [
        replace(finding, verdict=OK, found=f"not needed for emulated groups ({finding.found})", remedy="")
        if finding.verdict != OK and finding.needed == "devices"
        else finding
        for finding in findings
    ]
