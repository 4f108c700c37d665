"""Starting the guest's programs."""

from __future__ import annotations

import os

from hawse.agent.system.reaper import Reaper


def test_program_inherits_its_oom_score() -> None:
    reaper = Reaper()

    def told(value: int) -> bytes:
        reading, writing = os.pipe()
        argv = ["/bin/cat", "/proc/self/oom_score_adj"]
        pid = reaper.spawn(argv, environment={}, descriptors={1: writing}, oom_score_adj=value)
        os.close(writing)
        assert os.waitpid(pid, 0)[1] == 0
        with open(reading, "rb") as pipe:
            return pipe.read()

    assert (told(321), told(0)) == (b"321\n", b"0\n")
