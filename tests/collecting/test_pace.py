"""When own steps are taken and when a run trains."""

from __future__ import annotations

import pytest

from lit_offrl.collecting.pace import Pace
from lit_offrl.common.errors import ConfigError


def test_a_block_comes_before_its_optimiser_steps():
    pace = Pace(steps=10, initial=4, block=2, ratio=1.5, begun=100)
    assert pace.updates == 3 and pace.last == 109
    needed = [pace.needed(step) for step in range(100, 110)]
    assert needed == [6, 6, 6, 8, 8, 8, 10, 10, 10, 10]
    assert [pace.own(step) for step in (100, 102, 103, 106, 109)] == [0, 4, 6, 8, 10]
    assert (103 - pace.origin) / pace.updates * pace.block == 6


def test_a_step_of_its_own_for_each_optimiser_step_is_the_default():
    pace = Pace(steps=5, begun=7)
    assert [pace.needed(step) for step in range(7, 13)] == [1, 2, 3, 4, 5, 5]
    assert pace.last == 12 and pace.origin == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 5, "initial": 5}, "initial_steps is 5 of 5 steps"),
        ({"steps": 5, "block": 2}, "steps is 5 and steps_at_once 2"),
        ({"steps": 6, "initial": 3, "block": 2}, "initial_steps is 3 and steps_at_once 2"),
        ({"steps": 6, "ratio": 0.5}, "updates_per_step 0.5 makes 0.5 updates after 1 own"),
        ({"steps": 6, "ratio": 0.01}, "updates_per_step 0.01 makes 0.01 updates"),
        ({"steps": 0}, "steps is 0: give at least 1"),
    ],
)
def test_numbers_that_make_no_whole_blocks_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Pace(**options)
