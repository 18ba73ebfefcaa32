"""Windows: rows of one episode alone, which stay where it ended, and returns to its end."""

from __future__ import annotations

import numpy as np
import pytest

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Windows

LENGTHS, HORIZON, GAMMA = (5, 2, 7, 3), 4, 0.9


def dataset(with_next: bool) -> OfflineDataset:
    """Episodes 0 and 2 end in a terminal; a state is (episode, step), the last step is one more."""
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    step = np.concatenate([np.arange(length) for length in LENGTHS])
    last = np.concatenate([np.arange(length) == length - 1 for length in LENGTHS])
    columns = {
        "observations": np.stack([episode, step], 1).astype(np.float32),
        "actions": (10.0 * episode + step)[:, None].astype(np.float32),
        "rewards": (1.0 + step).astype(np.float32),
        "terminals": last & (episode % 2 == 0),
        "timeouts": last & (episode % 2 == 1),
    }
    if with_next:
        columns["next_observations"] = columns["observations"] + np.float32([0, 1])
    return OfflineDataset.from_columns(columns)


@pytest.mark.parametrize("with_next", [True, False])
@pytest.mark.parametrize("partial", ["terminal", "all", "none"])
def test_windows_never_cross_an_episodes_end(with_next, partial):
    view = Windows(HORIZON, GAMMA, partial, terminal_reward=-7.0).bind(dataset(with_next))
    batch = view.batch(view.rows)
    begun = {}
    for states, actions, mask, total in zip(*(part.numpy() for part in batch), strict=True):
        episode, start = states[0].astype(int)
        real = int(mask.sum())
        begun.setdefault(episode, []).append(start)
        length, terminal = LENGTHS[episode], episode % 2 == 0
        known = length if with_next or terminal else length - 1  # steps with a state after them
        assert real == min(HORIZON, known - start) and mask[:real].all()
        assert (states[:, 0] == episode).all()
        held = start + real if with_next or start + real < length else length - 1
        steps = [*range(start, start + real), *[held] * (HORIZON - real)]
        assert states[:, 1].tolist() == steps
        assert actions[:real, 0].tolist() == [10 * episode + step for step in steps[:real]]
        assert not actions[real:].any()
        rewards = np.arange(start + 1.0, length + 1) - 7.0 * terminal * (
            np.arange(start, length) == length - 1
        )
        assert total == pytest.approx((rewards * GAMMA ** np.arange(length - start)).sum(), 1e-5)
    for episode, length in enumerate(LENGTHS):
        terminal = episode % 2 == 0
        known = length if with_next or terminal else length - 1
        short = partial == "all" or (partial == "terminal" and terminal)
        expected = list(range(known if short else max(0, known - HORIZON + 1)))
        assert begun.get(episode, []) == expected
    assert dataset(with_next).column("rewards").max() == 7  # the data keep their rewards


def test_without_rewards_there_are_no_returns():
    columns = {k: v for k, v in dataset(True).columns.items() if k != "rewards"}
    view = Windows(HORIZON).bind(OfflineDataset.from_columns(columns))
    assert view.batch(view.rows[:2]).returns is None


def test_options_that_cannot_be():
    with pytest.raises(ConfigError, match="horizon is 0"):
        Windows(0)
    with pytest.raises(ConfigError, match="terminal_reward is nan"):
        Windows(4, terminal_reward=float("nan"))
    with pytest.raises(ConfigError, match="partial is 'some'"):
        Windows(4, partial="some")
