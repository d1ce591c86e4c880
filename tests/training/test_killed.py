"""A run that is killed at random moments ends with the bits of one that was not."""

import os

from .kill_many import survive, whole_run
from .killed_run import STEPS

# Each costs the start of a process. `.ci/run` asks for more.
KILLS = int(os.environ.get("KILLS", "3"))


def test_a_killed_run_ends_with_the_bits_of_the_uninterrupted_one(tmp_path):
    expected = whole_run()
    counts, digests = survive(tmp_path, KILLS, seed=0, steps=150 // KILLS)
    assert counts.total() == KILLS
    assert counts["saving"] >= KILLS // 5
    assert set(digests) == {expected}
    # Nothing is left of what was interrupted.
    for folder in tmp_path.iterdir():
        assert {path.name for path in folder.iterdir()} == {str(STEPS - 3), str(STEPS)}
