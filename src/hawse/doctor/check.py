"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass, replace

OK, WARNING, MISSING = "ok", "warning", "missing"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, in a sentence, and what to do ("" where nothing is to do).

    ``needed`` is "containers" for what no container runs without, "devices" for what the host's devices need as well,
    "" for what is only good to know.
    """

    name: str
    verdict: str
    found: str
    remedy: str = ""
    needed: str = ""


def without_devices(finding: Finding) -> Finding:
    """The finding on a host whose groups are emulated: a check for the host's devices does not fail there."""
    if finding.verdict == MISSING and finding.needed == "devices":
        return replace(finding, verdict=OK, found=f"not needed for emulated groups ({finding.found})", remedy="")
    return finding


def is_ready(findings: list[Finding], *, devices: bool) -> bool:
    """Whether nothing needed is missing, for containers and, where wanted, for devices of the host."""
    wanted = {"containers", "devices"} if devices else {"containers"}
    return not [finding for finding in findings if finding.verdict == MISSING and finding.needed in wanted]
