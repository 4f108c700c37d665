"""The result of a check of `hawse doctor`."""

from __future__ import annotations

from dataclasses import dataclass, replace

OK, WARNING, MISSING = "ok", "warning", "missing"


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


def without_devices(finding: Finding) -> Finding:
    """The finding for a configuration with emulated groups: checks that only devices of the host need do not fail."""
    if finding.verdict == MISSING and finding.needed == "devices":
        return replace(finding, verdict=OK, found=f"not needed for emulated groups ({finding.found})", remedy="")
    return finding


def is_ready(findings: list[Finding], *, devices: bool) -> bool:
    """Whether nothing is missing that containers need and, with ``devices``, that devices of the host need."""
    needs = {"containers", "devices"} if devices else {"containers"}
    return not [finding for finding in findings if finding.verdict == MISSING and finding.needed in needs]
