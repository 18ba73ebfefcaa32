import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from lit_offrl.collecting import ogbench_episodes
from lit_offrl.collecting.ogbench import OGBenchCollection, _reports
from lit_offrl.collecting.ogbench_episodes import OFFICIAL, PointMaze, _visible, maker, work
from lit_offrl.commands.collect import _collection, _parser, main
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.datasets.ogbench_entries import OGBENCH
from lit_offrl.experiments.process import folder_lock

MAZE = "pointmaze-medium-v0"
SIZES = ("--max_episode_steps", "9")


@pytest.fixture(autouse=True, scope="module")
def _needed():
    pytest.importorskip("ogbench", reason="makes episodes in ogbench's environments")
    pytest.importorskip("dm_control", reason="ogbench builds its models with dm_control")


def arguments(path, env=MAZE, kind="navigate", *more):
    return ["--env", env, "--kind", kind, "--output", str(path), *more]


def collect(path, *more, env=MAZE, kind="navigate"):
    sizes = () if "--steps" in more else ("--episodes", "3")
    return main(arguments(path, env, kind, *SIZES, *sizes, *more))


def read(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}


def made(folder, name="data"):
    """Return the bytes of the two files, and the facts beside them."""
    files = [(folder / f"{name}{split}.npz").read_bytes() for split in ("", "-val")]
    return files, json.loads((folder / f"{name}.json").read_text())


# sizes of observations, qpos, qvel and button_states in the official files
@pytest.mark.parametrize(
    ("env", "kind", "sizes"),
    [
        ("cube-single-v0", "play", (28, 21, 20)),
        ("scene-v0", "noisy", (40, 25, 24, 2)),
        (MAZE, "navigate", (2, 2, 2)),
    ],
)
def test_the_layout_is_the_official_one_and_ogbench_reads_it(tmp_path, env, kind, sizes):
    import ogbench

    name = f"{env.removesuffix('-v0')}-{kind}-v0"
    assert collect(tmp_path / f"{name}.npz", "--workers", "1", env=env, kind=kind) == 0
    columns = read(tmp_path / f"{name}.npz")
    action = 2 if env == MAZE else 5
    names = ["observations", "actions", "terminals", "qpos", "qvel", "button_states"]
    types = ["float32", "float32", "bool", "float32", "float32", "int64"]
    shapes = [(27, sizes[0]), (27, action), (27,), *((27, size) for size in sizes[1:])]
    found = [(name, str(column.dtype), column.shape) for name, column in columns.items()]
    assert found == list(zip(names[: len(found)], types, shapes, strict=False))
    assert len(found) == len(shapes)
    assert np.flatnonzero(columns["terminals"]).tolist() == [8, 17, 26]
    assert np.abs(columns["actions"]).max() <= 1
    if env == MAZE:  # observes its place
        np.testing.assert_array_equal(columns["observations"], columns["qpos"])
    else:  # observes the arm's joints first
        np.testing.assert_array_equal(columns["observations"][:, :6], columns["qpos"][:, :6])
    train, validation = ogbench.make_env_and_datasets(
        name, dataset_dir=str(tmp_path), dataset_only=True, add_info=True
    )
    assert train["next_observations"].shape == (24, sizes[0])  # an episode's last row is a state
    assert validation["actions"].shape == (8, action)
    np.testing.assert_array_equal(train["next_observations"][0], columns["observations"][1])


def test_one_worker_or_two_make_the_same_bytes(tmp_path):
    for name, workers in (("one", "1"), ("two", "2")):
        assert collect(tmp_path / name / "data.npz", "--workers", workers) == 0
    (one, facts), (two, _) = made(tmp_path / "one"), made(tmp_path / "two")
    assert one == two
    assert facts["rows"] == 27 and facts["validation_rows"] == 9 and facts["episodes"] == 3
    assert "ogbench" in facts["versions"] and facts["command"].startswith("lit-offrl collect")
    assert sorted(os.listdir(tmp_path / "one")) == ["data-val.npz", "data.json", "data.npz"]


def test_the_files_are_the_episodes_in_their_order(tmp_path):
    assert collect(tmp_path / "data.npz", "--workers", "1", "--seed", "4") == 0
    make = maker(MAZE, "navigate", 9, 0.5)
    episodes = [make.episode(4, number)[0] for number in range(4)]
    for name, numbers in (("data", (0, 1, 2)), ("data-val", (3,))):
        for column, values in read(tmp_path / f"{name}.npz").items():
            wanted = np.concatenate([episodes[number][column] for number in numbers])
            np.testing.assert_array_equal(values, wanted)
    starts = [make._env.xy_to_ij(one["observations"][0]) for one in episodes]
    assert len(set(starts)) > 1  # each has numbers of its own


def test_a_seed_repeats_whatever_was_drawn_before_and_another_seed_differs(tmp_path, capfd):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert collect(tmp_path / f"{name}.npz", "--workers", "1", "--seed", seed) == 0
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    (a, facts), (b, _), (c, _) = (made(tmp_path, name) for name in "abc")
    assert a == b and a[0] != c[0] and a[1] != c[1]
    said = capfd.readouterr().out
    for name, content in zip(("a.npz", "a-val.npz"), a, strict=True):
        digest = hashlib.sha256(content).hexdigest()
        assert facts["sha256"][name] == digest and f"sha256 {digest}  {tmp_path / name}" in said


@pytest.fixture(scope="module")
def scene(_needed):
    return maker("scene-v0", "play", 12, 0.1)


def test_an_episode_does_not_depend_on_those_made_before(scene):
    for make in (scene, maker(MAZE, "stitch", 12, 0.5)):
        first, _ = make.episode(0, 5)
        make.episode(1, 0)
        again, _ = make.episode(0, 5)
        for name, column in first.items():
            assert column.tobytes() == again[name].tobytes(), name


def stopping(number, at):
    """Return what stands for ``_row``, and gives this process a signal at a step."""
    row, steps = ogbench_episodes._row, iter(range(at + 1))

    def stop(*step):
        if next(steps, None) == at:
            os.kill(os.getpid(), number)
        return row(*step)

    return stop


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    assert collect(tmp_path / "whole" / "data.npz", "--workers", "1") == 0
    path, parts = tmp_path / "broken" / "data.npz", tmp_path / "broken" / "data.parts"
    code = f"""
import os, signal, sys
from lit_offrl.collecting import ogbench_episodes
from lit_offrl.commands.collect import main
row, steps = ogbench_episodes._row, iter(range(23))
def stop(*step):
    if next(steps) == 22:  # within the third of 4 episodes
        os.kill(os.getpid(), signal.SIGKILL)
    return row(*step)
ogbench_episodes._row = stop
main({arguments(path, MAZE, "navigate", *SIZES, "--episodes", "3", "--workers", "1")})
"""
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    kept = {part: part.stat().st_mtime_ns for part in parts.glob("0*.npz")}
    assert sorted(part.name for part in kept) == ["000000.npz", "000001.npz"]
    assert not path.exists()
    with pytest.raises(ConfigError, match=r"data.parts: has episodes of another run \(seed 0\)"):
        collect(path, "--seed", "1")
    monkeypatch.setattr(OGBenchCollection, "save", lambda *_, **__: "all")
    assert collect(path, "--workers", "1") == 0
    assert {part: part.stat().st_mtime_ns for part in kept} == kept  # none was made again
    monkeypatch.undo()
    assert path.exists() and parts.exists()  # as if it was killed when all but done
    assert collect(path, "--workers", "1") == 0
    assert sorted(os.listdir(path.parent)) == ["data-val.npz", "data.json", "data.npz"]
    with pytest.raises(ConfigError, match="exists: choose another --output or say --overwrite"):
        collect(path)
    assert made(tmp_path / "broken")[0] == made(tmp_path / "whole")[0]


def test_a_signal_says_what_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ogbench_episodes, "_row", stopping(signal.SIGTERM, at=12))
    assert collect(tmp_path / "data.npz", "--workers", "1") == 128 + signal.SIGTERM
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"SIGTERM; kept 1 of 4 episodes in {tmp_path}/data.parts, with which the same" in said
    with folder_lock(tmp_path / "data.parts"):
        assert collect(tmp_path / "data.npz", "--workers", "1") == 1
    assert "another process works on it" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["data.parts"]


def test_a_broken_episode_is_made_again(tmp_path, capsys, monkeypatch):
    """A power cut may leave an empty or a cut file, with which nothing could go on."""
    path, parts = tmp_path / "data.npz", tmp_path / "data.parts"
    with monkeypatch.context() as patched:
        patched.setattr(OGBenchCollection, "save", lambda *_, **__: "all")
        assert collect(path, "--workers", "1") == 0
    whole = path.read_bytes()
    (parts / "000000.npz").write_bytes(b"")
    cut = parts / "000002.npz"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert collect(path, "--workers", "1") == 0
    said = capsys.readouterr().out
    assert "000000.npz is broken" in said and "000002.npz is broken" in said
    assert path.read_bytes() == whole and not parts.exists()


@pytest.mark.parametrize("text", ["", '{"env_id": ', "[1]", "7"])
def test_a_broken_recipe_is_named(tmp_path, text):
    parts = tmp_path / "data.parts"
    parts.mkdir()
    (parts / "000000.npz").write_bytes(b"")
    (parts / "recipe.json").write_text(text)
    with pytest.raises(ConfigError, match=r"data.parts/recipe.json: does not say of which run"):
        collect(tmp_path / "data.npz")


@pytest.mark.parametrize("name", ["data.npz", "data-val.npz", "data.json"])
def test_no_file_is_replaced_unasked(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} exists: choose another --output or say"):
        collect(tmp_path / "data.npz")
    assert (tmp_path / name).read_text() == "mine"


class Ended:
    """A worker process that has ended."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def join(self):
        pass


def test_workers_say_what_they_made_and_what_failed(tmp_path):
    def told(*reports, code=0):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        for report in reports:
            sender.send(report)
        sender.close()
        return list(_reports({receiver: Ended(code)}))

    assert told(3, 4) == [3, 4]
    with pytest.raises(EvaluationError, match="a worker process failed: RuntimeError: it fell"):
        told(3, "RuntimeError: it fell")
    with pytest.raises(ConfigError, match="is not there"):  # with its own exit code
        told(ConfigError("is not there"))
    with pytest.raises(EvaluationError, match="ended with exit code -9"):
        told(3, code=-9)
    handler = signal.getsignal(signal.SIGINT)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    work(sender, tmp_path / "gone", "pointmaze-tiny-v0", "navigate", 9, 0.5, 0, [1])
    signal.signal(signal.SIGINT, handler)
    assert "NameNotFound: Environment `pointmaze-tiny` doesn't exist" in receiver.recv()


def test_mistakes_are_told_in_a_line_that_lists_what_there_is(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    with pytest.raises(ConfigError, match=r"'Pendulum-v1': choose pointmaze-medium-v0, pointmaze-"):
        collect(path, env="Pendulum-v1")
    with pytest.raises(
        ConfigError, match="'cube-single-v0' does not have it: choose play or noisy"
    ):
        collect(path, env="cube-single-v0")
    with pytest.raises(ConfigError, match=r"known: .* play, noisy, navigate, stitch"):
        collect(path, kind="plays")
    with pytest.raises(ConfigError, match=r"data.hdf5: OGBench's files are .npz: call it so, as"):
        collect(tmp_path / "data.hdf5")
    with pytest.raises(ConfigError, match="--steps 8: an episode has 9 rows"):
        collect(path, "--steps", "8")
    with pytest.raises(ConfigError, match="give one"):
        collect(path, "--steps", "18", "--episodes", "2")
    with pytest.raises(ConfigError, match="--policies is of"):
        collect(path, "--policies", "3")
    monkeypatch.setitem(sys.modules, "ogbench.locomaze", None)
    with pytest.raises(EvaluationError, match=r"package ogbench: run `pip install -e .\[ogbench"):
        collect(path, "--workers", "1")
    assert os.listdir(tmp_path) == []


def test_the_official_sizes():
    sizes = {
        (env, kind): (each.episodes, each.rows)
        for env, kinds in OFFICIAL.items()
        for kind, each in kinds.items()
    }
    assert sizes["cube-single-v0", "play"] == sizes["puzzle-4x4-v0", "noisy"] == (1000, 1001)
    assert sizes["cube-quadruple-v0", "noisy"] == sizes["puzzle-4x6-v0", "play"] == (5000, 1001)
    assert sizes["pointmaze-giant-v0", "navigate"] == (500, 2001)
    assert sizes["pointmaze-giant-v0", "stitch"] == (5000, 201)


def test_the_catalogue_says_how_an_equivalent_is_made(tmp_path):
    for name in ("scene-noisy-singletask-task3-v0", "pointmaze-giant-stitch-v0"):
        command = OGBENCH[name].collect_command
        words = command.replace("regenerated", str(tmp_path)).split()
        assert isinstance(_collection(_parser().parse_args(words[2:])), OGBenchCollection)
        assert command.endswith(f"regenerated/{OGBENCH[name].base}.npz")
    for name in ("antmaze-medium-navigate-v0", "visual-cube-single-play-v0"):
        assert name not in OGBENCH or OGBENCH[name].collect_command is None
    made = {entry.base for entry in OGBENCH.values() if entry.collect_command}
    assert len(made) == sum(map(len, OFFICIAL.values()))  # all that can be made is in the catalogue


def test_a_scene_is_made_again_where_the_block_cannot_be_seen(scene, monkeypatch):
    # y to the right, z up; the drawer is at the left, and its floor at 0.06 to 0.08
    there = np.array([[0.4, 0.0, 0.02], [0.4, -0.31, 0.07], [0.4, 0.28, 0.3]])
    assert _visible(there)
    for hidden in ([0.4, 0.29, 0.02], [0.4, -0.3, 0.05], [0.4, -0.3, 0.09]):
        assert not _visible(np.vstack([there, hidden]))
    tried, attempt = [], scene._attempt

    def first_hidden(keys):
        tried.append(keys)
        rows, tasks = attempt(keys)
        if len(tried) == 1:
            rows[3]["qpos"][15] = 0.3
        return rows, tasks

    monkeypatch.setattr(scene, "_attempt", first_hidden)
    columns, _ = scene.episode(0, 2)
    assert tried == [(0, 2, 0), (0, 2, 1)]
    monkeypatch.undo()
    assert (columns["actions"] != scene.episode(0, 2)[0]["actions"]).any()


def test_mazes_are_walked_as_the_recipe_says():
    make = PointMaze(MAZE, "stitch", 201, 0.5)
    env = make._env
    # medium: no goal lies in a hallway, and no cell is without free neighbours
    assert (1, 1) in make._goals and (4, 4) in make._goals and (2, 2) in make._goals
    assert (5, 6) not in make._goals and (3, 3) not in make._goals and len(make._cells) == 26
    assert make._near((1, 1)) == [(3, 3), (4, 2)]  # over (2, 2) and (3, 2)
    columns, tasks = make.episode(0, 0)
    assert tasks.tolist() == [0, 0]
    # after 200 steps of about 0.2 the point is at its goal, four cells of 4 away, and stays
    end = columns["observations"][-1]
    assert np.linalg.norm(end - np.array(env.cur_goal_xy)) < 2.5
    cells = [env.xy_to_ij(place) for place in columns["observations"].astype(float)]
    assert all(env.maze_map[cell] == 0 for cell in cells)
    moved = np.abs(np.array(cells[0]) - cells[-1]).sum()
    assert moved <= 5
    columns, tasks = PointMaze(MAZE, "navigate", 400, 0.0).episode(0, 1)
    assert tasks[0] == tasks[1] >= 1
    # without noise each action points to the middle of a free cell beside the point's own
    for row in range(0, 400, 40):
        way = (
            env.ij_to_xy(env.xy_to_ij(columns["observations"][row])) - columns["observations"][row]
        )
        to = way[None] + 4 * np.array([[0, 1], [1, 0], [0, -1], [-1, 0], [0, 0]])
        to /= np.linalg.norm(to, axis=1, keepdims=True)
        assert np.abs(to - columns["actions"][row]).max(1).min() < 1e-3
