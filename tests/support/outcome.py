"""Whether a test has failed, for fixtures at their end."""

from __future__ import annotations

import pytest

FAILED = pytest.StashKey[bool]()
