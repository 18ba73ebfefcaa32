import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest

from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation.envs import make_env
from lit_offrl.evaluation.rollouts import rollout
from lit_offrl.evaluation.video import VideoWriter


class Still:
    """A policy of zeros."""

    def __init__(self, actions):
        self.actions = actions

    def reset(self, mask):
        pass

    def act(self, observations):
        return np.zeros((len(observations), self.actions), np.float32)


@pytest.mark.parametrize(
    ("env_id", "actions", "size"),
    [("lit_offrl/antmaze-umaze-v2", 8, (160, 160)), ("lit_offrl/random-walk-v0", 1, (160, 32))],
)
def test_own_environments_are_filmed_without_gl(tmp_path, monkeypatch, env_id, actions, size):
    if actions == 8:
        pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    path = tmp_path / "film.mp4"
    options = {"episodes": 1, "seed": 0, "num_envs": 1, "max_episode_steps": 4}
    rollout(Still(actions), env_id, record_video=path, video_size=size, **options)
    with imageio.get_reader(path) as video:
        pictures = np.array(list(video.iter_data()))
    assert pictures.shape == (5, size[1], size[0], 3) and pictures.std() > 10


class Blind(gymnasium.Env):
    """Cannot draw, for the reason given."""

    def __init__(self, error):
        self.error = error

    def render(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no GL context\nat gl.c:3"), r"Blind cannot be filmed, .*\(no GL context\)"),
        (AttributeError("'NoneType' object has no attribute 'glGetError'"), "MUJOCO_GL=osmesa"),
        (gymnasium.error.DependencyNotInstalled("pygame is not installed"), "filmed: pygame is"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, error, message):
    path = tmp_path / "film.mp4"
    with pytest.raises(EvaluationError, match=message) as caught:
        VideoWriter(path, Blind(error))
    assert "\n" not in str(caught.value) and not path.exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "egl"),
        ({"DISPLAY": ":0"}, None),
        ({"MUJOCO_GL": "osmesa"}, "osmesa"),
    ],
)
def test_mujoco_draws_without_a_window_where_there_is_no_screen(monkeypatch, given, expected):
    import os

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.1")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    make_env("lit_offrl/random-walk-v0").close()
    assert os.environ.get("MUJOCO_GL") == given.get("MUJOCO_GL")  # nothing is to be drawn
    make_env("lit_offrl/random-walk-v0", render_mode="rgb_array").close()
    assert os.environ.get("MUJOCO_GL") == expected
