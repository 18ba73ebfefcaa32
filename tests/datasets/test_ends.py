"""Episodes' ends under other names are read as what they are, or refused by name."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.checks import examine
from lit_offrl.datasets.ends import kind_of
from lit_offrl.datasets.hdf5 import read_hdf5, read_header
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Transitions

EPISODES, STEPS = 20, 50
ROWS = EPISODES * STEPS
EPISODE, STEP = np.repeat(np.arange(EPISODES), STEPS), np.tile(np.arange(STEPS), EPISODES)
END = STEP == STEPS - 1
TERMINAL = END & (EPISODE < 10)  # the others end by a limit
TIMEOUT = END & ~TERMINAL
STOPS = np.flatnonzero(END) + 1


def columns(**more):
    """Columns whose observation's dimension 0 is the episode's number; None leaves one out."""
    base = {
        "observations": np.stack([EPISODE, STEP], 1).astype(np.float32),
        "actions": np.zeros((ROWS, 1), np.float32),
        "rewards": np.ones(ROWS, np.float32),
        "terminals": TERMINAL,
    }
    return {key: values for key, values in {**base, **more}.items() if values is not None}


def crossings(dataset):
    view = Transitions().bind(dataset)
    batch = view.batch(view.spans.all())
    return int((batch.observations[:, 0] != batch.next_observations[:, 0]).sum())


READ = {
    "timeouts": {"timeouts": TIMEOUT},
    "truncations": {"truncations": TIMEOUT},
    "timeouts-and-truncations": {"timeouts": TIMEOUT, "truncations": END},  # also of terminals
    "truncated": {"truncated": TIMEOUT},
    "TRUNCATED": {"TRUNCATED": TIMEOUT[:, None].astype(np.float64)},
    "infos": {"infos/TimeLimit.truncated": TIMEOUT},
    "both-renamed": {"terminals": None, "terminations": TERMINAL, "truncations": TIMEOUT},
    "episode_terminals": {"episode_terminals": END.astype(np.float32)},
    "dones": {"dones": END},
    "dones_float": {"dones_float": END.astype(np.float32)},
    "done-and-timeouts": {"terminals": None, "timeouts": TIMEOUT, "done": END},
    "dones-are-the-terminals": {"dones": TERMINAL, "timeouts": TIMEOUT},
    "next": {"next/done": END, "next/terminated": TERMINAL, "next/truncated": TIMEOUT},
    "is_last": {"is_first": np.roll(END, 1), "is_last": END, "is_terminal": TERMINAL},
    "episode_starts": {"episode_starts": STEP == 0},
    "starts-as-numbers": {"episode_starts": STOPS - STEPS},
    "ends-as-numbers": {"episode_ends": STOPS},
    "lengths": {"episode_lengths": np.full(EPISODES, STEPS)},
    "episode_index": {"episode_index": EPISODE + 7},
    "episodeId": {"episodeId": EPISODE},
    "masks": {"masks": 1.0 - TERMINAL, "dones_float": END.astype(np.float32)},
    "ogbench": {"terminals": END, "masks": 1.0 - TERMINAL, "valids": 1.0 - END},
    "rllib": {"terminals": None, "terminateds": TERMINAL, "truncateds": TIMEOUT, "t": STEP},
    "discounted-masks": {"masks": 0.99 * (1 - TERMINAL), "dones_float": END.astype(np.float32)},
    "deep": {"data/steps/is_last": END},
    "frame_index": {"frame_index": STEP, "index": np.arange(ROWS)},
    "timestep": {"timestep": STEP + 1, "truncated": np.zeros(ROWS)},
    "demo_id": {"meta/demo_id": 40 - EPISODE},
    "lengths-in-each-row": {"ep_len": np.full(ROWS, STEPS)},
    "sounds-only": {"timeouts": TIMEOUT, "robot_done": END, "after_reset": STEP == 0},
}


@pytest.mark.parametrize("case", READ)
def test_all_names_give_the_episodes_of_timeouts(tmp_path, raw, case):
    path = raw(tmp_path / "x.hdf5", columns(**READ[case]))
    for data in (read_hdf5(path), OfflineDataset.from_columns(columns(**READ[case]))):
        assert len(data.episodes) == EPISODES and not data.cut_off
        assert data.episode_returns().tolist() == [STEPS] * EPISODES
        assert data.episode_terminated.sum() == 10
        assert crossings(data) == 0
        as_named = "timeouts" in READ[case] and READ[case].get("terminals", END) is not None
        assert bool(data.spec.handling) != as_named
    assert set(read_header(path).columns) == set(read_hdf5(path).columns)


def test_what_was_read_from_where_stands_with_the_data(tmp_path, raw):
    data = read_hdf5(raw(tmp_path / "x.hdf5", columns(dones=END)))
    said = "timeouts read where 'dones' ends episodes without a terminal (10 rows)"
    assert data.spec.handling == (said,)


def test_ogbench_marks_true_ends_by_masks_alone(tmp_path, raw):
    never = columns(terminals=END, masks=np.ones(ROWS))
    data = read_hdf5(raw(tmp_path / "x.hdf5", never))
    assert len(data.episodes) == EPISODES and not data.columns["terminals"].any()
    solved = columns(terminals=END, masks=1.0 - (STEP == 20))  # and the trajectory goes on
    data = read_hdf5(raw(tmp_path / "y.hdf5", solved))
    assert data.episode_lengths.tolist() == [21, 29] * EPISODES
    assert data.episode_terminated.tolist() == [True, False] * EPISODES


def test_discounts_of_another_kind_say_nothing(tmp_path, raw):
    data = read_hdf5(raw(tmp_path / "x.hdf5", columns(discounts=np.full(ROWS, 0.99))))
    assert len(data.episodes) == 11 and data.cut_off


def test_counters_of_other_things_imply_no_ends(tmp_path, raw):
    for values in (np.arange(ROWS), np.arange(ROWS) % 7, np.full(ROWS, 5), np.arange(ROWS)[::-1]):
        data = read_hdf5(raw(tmp_path / "x.hdf5", columns(step=values, demo_id=values % 3)))
        assert len(data.episodes) == 11 and data.spec.handling == ()
    within = columns(terminals=(STEP == 9) | (STEP == 29), demo_id=EPISODE)
    data = read_hdf5(raw(tmp_path / "x.hdf5", within))
    assert data.episode_lengths.tolist() == [10, 20, 20] * EPISODES


def test_where_timeouts_tell_other_names_are_left_alone(tmp_path, raw):
    others = {
        "trajectory_id": np.array([f"e{i}" for i in EPISODE], "S"),
        "masks": np.linspace(0, 1, ROWS),
        "first": np.linspace(-1, 1, ROWS),
        "gripper_done": STEP == 20,
        "step": STEP % 7,
        "infos/TimeLimit.truncated": np.zeros(ROWS, bool),
        "dones": np.ones(7),
        "episode_lengths": np.ones((ROWS, 2)),
        "data/demo_0/dones": np.ones(7),
    }
    data = read_hdf5(raw(tmp_path / "x.hdf5", columns(timeouts=TIMEOUT, **others)))
    assert len(data.episodes) == EPISODES and data.spec.handling == ()
    few = {"data/demo_0/dones": np.ones(7)}  # of another recording in the file
    assert len(read_hdf5(raw(tmp_path / "y.hdf5", columns(**few))).episodes) == 11


REFUSED = {
    "dones-alone": ({"terminals": None, "dones": END}, "'dones' does not say which"),
    "ids-alone": ({"terminals": None, "episode_ids": EPISODE}, "'episode_ids' does not say which"),
    "two": ({"dones": END, "truncated": np.roll(TIMEOUT, 1)}, "'truncated' and 'dones' contradict"),
    "shifted": ({"dones": np.roll(END, 1)}, "'terminals' and 'dones' contradict"),
    "truncations": (
        {"timeouts": TIMEOUT, "truncations": TIMEOUT & (EPISODE > 15)},
        "'timeouts' and 'truncations' contradict each other about episodes' ends, first in row 549",
    ),
    "masks": ({"timeouts": TIMEOUT, "masks": 1.0 - END}, "'terminals' and 'masks' contradict"),
    "is_terminal": ({"is_terminal": END}, "'terminals' and 'is_terminal' contradict"),
    "discounts": ({"discount": 1.0 - END}, "'terminals' and 'discount' contradict"),
    "interleaved": ({"episode_id": np.tile(np.arange(20), 50)}, "'episode_id' sounds like"),
    "text": ({"episode_id": np.array([f"e{i}" for i in EPISODE], "S")}, "'episode_id' sounds"),
    "not-flags": ({"dones": END * 0.5}, "'dones' sounds like episodes' ends and has 0.5 in"),
    "wide": ({"dones": np.stack([END, END], 1)}, "'dones' sounds like episodes' ends"),
    "short": ({"dones": END[:-1]}, "'dones' sounds like episodes' ends and has 999 rows"),
    "lengths": ({"episode_lengths": np.full(EPISODES, 49)}, "'episode_lengths' sounds like"),
    "unknown": ({"robot_done": END}, "'robot_done' sounds like"),
    "eos": ({"eos": END}, "'eos' sounds like"),
    "finished": ({"episode_finished": END}, "'episode_finished' sounds like"),
    "link": ({"dones": h5py.SoftLink("/terminals")}, "'dones' is a link"),
    "group": ({"dones/inner": END}, "'dones' is a group"),
    "nothing": ({"dones": h5py.Empty("f4")}, "'dones' sounds like"),
    "uppercase": ({"TIMEOUTS": TIMEOUT}, "column 'TIMEOUTS', which is none of ours"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, raw, case):
    more, expected = REFUSED[case]
    path = raw(tmp_path / "x.hdf5", columns(**more))
    with pytest.raises(DatasetError) as caught:
        read_hdf5(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and expected in message


def test_names_of_other_things_are_left_alone(tmp_path, raw):
    for key in (
        "last_action",
        "end_effector_open",
        "infos/qpos",
        "advantages",
        "policy",
        "stepper",
    ):
        assert kind_of(key) is None
    more = {"timeouts": TIMEOUT, "start": np.ones((ROWS, 2)), "masks": np.ones((ROWS, 3))}
    data = read_hdf5(raw(tmp_path / "x.hdf5", columns(**more, end_effector_open=STEP % 2)))
    assert len(data.episodes) == EPISODES and data.spec.handling == ()


def test_the_shifted_layout_has_no_place_for_timeouts(tmp_path, raw):
    for name, key in (("x", "timeouts"), ("y", "truncations")):
        with pytest.raises(DatasetError, match=f"'{key}'.*use format 'd4rl'"):
            path = raw(tmp_path / f"{name}.hdf5", columns(**{key: TIMEOUT}))
            read_hdf5(path, format="pybullet")


@pytest.mark.parametrize(("limit", "said"), [(None, True), (60, True), (50, False)])
def test_terminals_of_episodes_of_one_length_are_suspected(limit, said):
    data = OfflineDataset.from_columns(columns(terminals=END), max_episode_steps=limit)
    warnings = "\n".join(examine(data).warnings)
    assert ("all 20 episodes have 50 rows and end in 'terminals'" in warnings) == said
    assert "most likely timeouts" in warnings
    mixed = OfflineDataset.from_columns(columns(timeouts=TIMEOUT))
    assert "most likely" not in "\n".join(examine(mixed).warnings)


def test_a_counter_does_not_keep_the_shifted_layout_from_being_guessed(tmp_path, raw):
    shifted = columns(terminals=END[:, None], rewards=np.ones((ROWS, 1)), step=STEP)
    for form in ("auto", "pybullet"):
        data = read_hdf5(raw(tmp_path / "x.hdf5", shifted), format=form)
        assert len(data) == ROWS - EPISODES and data.provenance["lit_offrl_layout"] == "pybullet"


def test_timeouts_that_are_all_terminals_are_doubted(tmp_path, raw):
    for case in ({"timeouts": END}, {"truncations": TIMEOUT}):
        data = read_hdf5(raw(tmp_path / "x.hdf5", columns(terminals=END, **case)))
        warnings = "\n".join(examine(data).warnings)
        assert "rows that 'timeouts' marks are marked by 'terminals' as well" in warnings
    data = read_hdf5(raw(tmp_path / "y.hdf5", columns(timeouts=END)))  # of some, as by chance
    assert "as well" not in "\n".join(examine(data).warnings)
