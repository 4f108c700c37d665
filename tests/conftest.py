"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# No example is too slow: how long one takes is the machine's business, and a busy one is no failure of the code.
settings.register_profile("hawse", deadline=None)
settings.load_profile("hawse")
