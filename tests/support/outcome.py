"""Whether a test has failed, for the teardown of fixtures."""

from __future__ import annotations

import pytest

FAILED = pytest.StashKey[bool]()
