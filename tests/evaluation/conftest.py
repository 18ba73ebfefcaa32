"""Small environments whose every return can be worked out by hand."""

import gymnasium
import numpy as np
import pytest


class Counter(gymnasium.Env):
    """Observes (steps so far, start); pays the action; ends after 3 + start steps if it ends."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, ends=True, aims=False, render_mode=None):
        self.ends, self.aims = ends, aims

    def _observe(self):
        return np.array([self.steps, self.start], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start = int(self.np_random.integers(5))
        self.steps = 0
        return self._observe(), {"goal": np.array([10.0 + self.start])} if self.aims else {}

    def step(self, action):
        self.steps += 1
        over = self.ends and self.steps == 3 + self.start
        return self._observe(), float(action[0]), over, False, {}


@pytest.fixture(autouse=True, scope="session")
def counters():
    gymnasium.register("Counter-v0", Counter, max_episode_steps=100)
    gymnasium.register("Aimed-v0", Counter, max_episode_steps=100, kwargs={"aims": True})
    gymnasium.register("Endless-v0", Counter, max_episode_steps=7, kwargs={"ends": False})
    yield
    for name in ("Counter-v0", "Aimed-v0", "Endless-v0"):
        gymnasium.registry.pop(name, None)  # other tests have one of the name too
