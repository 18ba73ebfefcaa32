"""Minari's datasets, made here, through the real package."""

from __future__ import annotations

import json

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction

minari = pytest.importorskip("minari", reason="the package minari is not installed")

from minari.data_collector import EpisodeBuffer  # noqa: E402

from lit_offrl.common.errors import ConfigError, DatasetError  # noqa: E402
from lit_offrl.datamodules import D4RLDataModule  # noqa: E402
from lit_offrl.datasets.cache import ColumnCache  # noqa: E402
from lit_offrl.datasets.minari import MinariSource  # noqa: E402
from lit_offrl.datasets.sources import find_source  # noqa: E402

BOX = spaces.Box(-10, 10, (2,), np.float32)
PARTS = {"observation": BOX, "achieved_goal": BOX, "desired_goal": BOX}
LENGTHS = (3, 2, 4)


def states(number: int, steps: int) -> np.ndarray:
    return np.array([[number, step] for step in range(steps + 1)], np.float32)


def make(name: str, space: spaces.Space, *, env=None, actions=BOX, **options):
    """Three episodes: the first ends in a termination, the second in a truncation, one in none."""
    buffers = []
    for number, steps in enumerate(LENGTHS):
        seen = states(number, steps)
        if isinstance(space, spaces.Dict):
            seen = {"observation": seen, "achieved_goal": seen + 1, "desired_goal": seen * 0 + 5}
        last = np.arange(steps) == steps - 1
        discrete = isinstance(actions, spaces.Discrete)
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=seen,
                actions=np.zeros(steps, np.int64) if discrete else -states(number, steps)[:-1],
                rewards=np.arange(steps, dtype=np.float64),
                terminations=last & (number == 0),
                truncations=last & (number == 1),
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        env=env,
        action_space=actions,
        observation_space=space,
        data_format="hdf5",
        algorithm_name="none",
        author="none",
        author_email="none",
        code_permalink="none",
        **options,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def test_vectors_become_rows_with_what_follows_each(folder):
    make("made/box-v0", BOX, env="Pendulum-v1", ref_min_score=-1.0, ref_max_score=9.0)
    source = MinariSource("made/box-v0")
    data = source.read()
    assert data.episodes.tolist() == [[0, 3], [3, 5], [5, 9]]
    assert data.episode_terminated.tolist() == [True, False, False]
    assert data.columns["timeouts"].tolist() == [False] * 4 + [True] + [False] * 3 + [True]
    assert data.columns["observations"][3:5].tolist() == [[1, 0], [1, 1]]
    assert data.columns["next_observations"][3:5].tolist() == [[1, 1], [1, 2]]
    assert data.columns["actions"][8].tolist() == [-2, -3]
    assert data.columns["rewards"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    spec = data.spec
    assert spec.name == "minari:made/box-v0"  # never D4RL's name
    assert (spec.env_id, spec.max_episode_steps) == ("Pendulum-v1", 200)
    assert (spec.ref_min_score, spec.ref_max_score) == (-1, 9)
    assert spec.ref_source.startswith("Minari's metadata")
    header = source.header()
    assert (header.observation_dim, header.action_dim) == (2, 2)
    assert header.action_high == (10, 10) and set(header.columns) == set(data.columns)


def test_what_the_space_leaves_unbounded_the_data_bound(folder, tmp_path, capsys):
    half = spaces.Box(np.float32([-9, -np.inf]), np.float32([9, np.inf]))
    make("made/half-v0", BOX, actions=half)
    make("made/open-v0", BOX, actions=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    options = {"cache_dir": str(tmp_path / "cache"), "validation_fraction": 0}
    for name, low, high in (("half", (-9, -3), (9, 0)), ("open", (-2, -3), (0, 0))):
        for _ in range(2):  # the second time from the cache
            data = D4RLDataModule(f"minari:made/{name}-v0", **options)
            assert (data.spec.action_low, data.spec.action_high) == (low, high)
            data.setup("fit")
            said = capsys.readouterr().out
            assert "unknown: policies act within the range of the data's actions" in said
            assert ("bounds of dimension 1 are" in said) == (name == "half")
            assert data.dataset.spec.action_low == low
    given = D4RLDataModule("minari:made/open-v0", action_low=-5, action_high=[5, 6], **options)
    assert given.spec.action_high == (5, 6)


def test_an_environment_with_options_of_its_own_is_not_named_by_its_id_alone(folder):
    made = {
        "options": gymnasium.make("Pendulum-v1", g=9.81),
        "wrapped": RescaleAction(gymnasium.make("Pendulum-v1"), -1, 1),
        "plain": gymnasium.make("Pendulum-v1"),
    }
    for name, env in made.items():
        make(f"made/{name}-v0", BOX, env=env.spec)
        found = MinariSource(f"made/{name}-v0").header()
        assert found.max_episode_steps == 200
        if name == "plain":
            assert found.env_id == "Pendulum-v1" and found.why_no_env is None
        else:
            assert found.env_id is None
            assert "Pendulum-v1 was made with options of its own" in found.why_no_env


def test_of_dictionaries_it_must_be_said_which_parts(folder):
    make("made/goals-v0", spaces.Dict(PARTS))
    with pytest.raises(
        ConfigError, match=r"dictionaries of .*observation \(2\).*minari_observations"
    ):
        MinariSource("made/goals-v0")
    with pytest.raises(ConfigError, match=r"'desired_gaol' .* Did you mean 'desired_goal'"):
        MinariSource("made/goals-v0", ["observation", "desired_gaol"])
    plain = MinariSource("made/goals-v0", ["observation"]).read()
    assert plain.columns["goals"].tolist() == [[5, 5]] * 9
    both = MinariSource("made/goals-v0", ["observation", "desired_goal"])
    data = both.read()
    assert data.columns["observations"][4].tolist() == [1, 1, 5, 5] and "goals" not in data.columns
    assert data.spec.handling == ("observations: observation + desired_goal",)
    assert data.spec.env_id is None and "dictionaries" in data.spec.why_no_env
    assert both.header().observation_dim == 4
    make("made/box-v0", BOX)
    with pytest.raises(ConfigError, match="no dictionary: leave minari_observations out"):
        MinariSource("made/box-v0", ["observation"])


def test_it_is_cached_by_all_of_its_files(folder, tmp_path, monkeypatch):
    make("made/box-v0", BOX)
    cache = ColumnCache(tmp_path / "cache")
    first = MinariSource("made/box-v0", cache=cache).read()
    assert isinstance(first.columns["rewards"].base, np.memmap)
    assert first.spec == MinariSource("made/box-v0").read().spec
    with monkeypatch.context() as patch:
        patch.setattr("lit_offrl.datasets.minari.MinariSource._episodes", None)  # not read again
        assert MinariSource("made/box-v0", cache=cache).read().spec == first.spec
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/rewards"][0] = 7
    assert MinariSource("made/box-v0", cache=cache).read().columns["rewards"][3] == 7


def damaged(folder, key, change):
    make("made/box-v0", BOX)
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        change(file, key)


def drop(file, key):
    del file[key]


def shorten(file, key):
    values = file[key][:-1]
    del file[key]
    file[key] = values


def spoil(file, key):
    file[key][1] = np.nan


def put_group(file, key):
    del file[key]
    file.create_group(key)


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        (drop, "episode_1", "'episode_1' of 3 is missing"),
        (drop, "episode_2/rewards", "'episode_2' of 3 is missing or cannot be read"),
        (put_group, "episode_0/actions", "'episode_0' of 3 is missing or cannot be read"),
        (shorten, "episode_1/actions", "'episode_1' has 1 rows of 'actions' for 2 rewards"),
        (shorten, "episode_2/observations", "'episode_2' has 3 rows of 'observations' for 4"),
        (spoil, "episode_1/rewards", "column 'rewards' has NaN in row 4"),
    ],
)
def test_what_is_broken_is_named_and_not_cached(folder, tmp_path, change, key, said):
    damaged(folder, key, change)
    cache = ColumnCache(tmp_path / "cache")
    with pytest.raises(DatasetError, match=r"^minari:made/box-v0 \(.*\): ") as caught:
        MinariSource("made/box-v0", cache=cache).read()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert cache.entries() == []


def test_what_is_not_there_or_of_another_kind(folder):
    with pytest.raises(DatasetError, match="minari download made/none-v0"):
        MinariSource("made/none-v0")
    make("made/discrete-v0", BOX, actions=spaces.Discrete(3))
    with pytest.raises(DatasetError, match=r"its actions are Discrete\(3\)"):
        MinariSource("made/discrete-v0").header()
    make("made/box-v0", BOX)
    facts = folder / "made/box-v0/data/metadata.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "env_spec": "Pendulum"}))
    with pytest.raises(DatasetError, match="minari:made/box-v0: cannot be opened"):
        MinariSource("made/box-v0")
    facts.write_text("{")
    with pytest.raises(DatasetError, match="minari:made/box-v0: cannot be opened") as caught:
        MinariSource("made/box-v0")
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(ConfigError, match=r"pip install -e .\[minari\]"):
        MinariSource("made/box-v0")


# ---- nested observations ---------------------------------------------------------------------


def number(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float64)


def elements() -> spaces.Dict:
    return spaces.Dict({"microwave": number(1), "kettle": number(7), "light switch": number(2)})


NESTED = spaces.Dict(
    {
        "observation": number(9),
        "desired_goal": elements(),
        "achieved_goal": elements(),
        "deep": spaces.Dict({"er": spaces.Dict({"still": number(2, 2)}), "a.b": number()}),
        "pair": spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2))),
        "gears": spaces.MultiDiscrete([2, 3]),
        "picture": spaces.Box(0, 255, (40, 36, 3), np.uint8),
        "mission": spaces.Text(20),
    }
)


def counted(space: spaces.Space, steps: int, start: int):
    """Return ``steps + 1`` observations whose numbers say part and step."""
    if isinstance(space, spaces.Dict):
        return {
            key: counted(inner, steps, start + 100 * place)
            for place, (key, inner) in enumerate(space.spaces.items())
        }
    if isinstance(space, spaces.Tuple):
        return tuple(counted(inner, steps, start) for inner in space.spaces)
    if isinstance(space, spaces.Text):
        return ["open the door"] * (steps + 1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        values = np.arange(steps + 1)[:, None] % getattr(space, "nvec", space.start * 0 + 3)
        return values[:, 0] + space.start if isinstance(space, spaces.Discrete) else values
    shape = (steps + 1, *space.shape)
    if isinstance(space, spaces.MultiBinary):
        return np.ones(shape, np.int8)
    if space.dtype == np.uint8:
        return np.zeros(shape, np.uint8)
    return start + np.arange(np.prod(shape)).reshape(shape).astype(np.float64)


def make_nested(name: str, space: spaces.Space, *, episodes: int = 2, data_format: str = "hdf5"):
    steps = 4
    buffers = [
        EpisodeBuffer(
            id=place,
            observations=counted(space, steps, 1000 * place),
            actions=np.zeros((steps, 2), np.float32),
            rewards=np.zeros(steps),
            terminations=np.zeros(steps, bool),
            truncations=np.arange(steps) == steps - 1,
        )
        for place in range(episodes)
    ]
    minari.create_dataset_from_buffers(
        name, buffers, action_space=BOX, observation_space=space, data_format=data_format
    )


@pytest.fixture(scope="module", params=["hdf5", "parquet"])
def nested(tmp_path_factory, request):
    """Two episodes of four steps with every kind of space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        make_nested("made/nested-v0", NESTED, data_format=request.param)
        yield lambda *names: MinariSource("made/nested-v0", list(names))


def test_a_goal_that_is_a_dictionary_becomes_a_vector_in_the_order_of_the_space(nested):
    source = nested("observation")
    data = source.read()
    assert (len(data), data.spec.observation_dim) == (8, 9)
    # Of the space's keys, sorted, `observation` is the sixth and `desired_goal` the third.
    assert data.columns["observations"][4].tolist() == [1500 + at for at in range(9)]
    kettle, light, microwave = range(1200, 1207), range(1300, 1302), range(1400, 1401)
    assert data.columns["goals"][4].tolist() == [*kettle, *light, *microwave]
    assert data.columns["goals"].shape == (8, 10)
    assert data.spec.handling == (
        "observations: observation",
        "goals: desired_goal.kettle + desired_goal.light switch + desired_goal.microwave",
    )
    assert set(source.header().columns) == set(data.columns)


@pytest.mark.parametrize(
    ("names", "row"),
    [
        (["desired_goal.microwave"], [401]),
        (["desired_goal.light switch", "deep.a.b"], [302, 303, 101]),
        (["deep"], [101, 204, 205, 206, 207]),
        (["pair"], [0, 1, 0, 1, 1]),  # 2 of 1 to 3
        (["pair.1", "pair.0"], [1, 1, 0, 1, 0]),
        (["gears"], [0, 1, 0, 1, 0]),
    ],
)
def test_any_part_of_any_depth_can_be_named(nested, names, row):
    data = nested(*names).read()
    assert data.columns["observations"][1].tolist() == row
    assert data.columns["next_observations"][0].tolist() == row
    assert data.spec.observation_dim == len(row)
    assert ("goals" in data.columns) == (names[0].partition(".")[0] != "desired_goal")
    if "pair" in names:
        assert data.spec.handling[0] == "observations: pair.0 (3, one-hot) + pair.1"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["picture"],
            r"its 'picture' is Box\(0, 255.* of its parts .*observation \(9\).*can be read",
        ),
        (["observation", "mission"], r"its 'mission' is Text\("),
        (
            ["desired_goal.kettel"],
            r"no observation 'desired_goal.kettel'.* 'desired_goal.kettle'\?",
        ),
        (["desired_goal", "desired_goal.kettle"], "names 'desired_goal.kettle' twice"),
        (
            ["pair.2"],
            r"no observation 'pair.2' \(it has .*picture \(picture, 40 × 36 × 3: not read",
        ),
    ],
)
def test_parts_that_cannot_be_had_are_refused_by_name(nested, names, said):
    with pytest.raises((ConfigError, DatasetError), match=said) as caught:
        nested(*names)
    assert "download" not in str(caught.value)


def test_a_tuple_of_observations_and_one_number(folder):
    make_nested("made/tuple-v0", spaces.Tuple((number(2), spaces.Dict({"x": number(1)}))))
    with pytest.raises(ConfigError, match=r"are tuples of 0 \(2\), 1\.x \(1\): say with"):
        MinariSource("made/tuple-v0")
    data = MinariSource("made/tuple-v0", ["1", "0"]).read()
    assert data.columns["observations"][1].tolist() == [101 - 100, 2, 3]
    make_nested("made/discrete-v1", spaces.Discrete(3))
    assert MinariSource("made/discrete-v1").read().columns["observations"][1].tolist() == [0, 1, 0]
    make_nested("made/picture-v0", NESTED["picture"])
    with pytest.raises(DatasetError, match=r"'observations' is Box.*no vector: choose another"):
        MinariSource("made/picture-v0")


def change_key(file, key):
    file[key.rpartition("/")[0] + "/other"] = file[key][()]
    del file[key]


def put_seven(file, key):
    file[key][1] = 7


@pytest.mark.parametrize(
    ("change", "key", "names", "said"),
    [
        (drop, "desired_goal/kettle", ["observation"], "'episode_1' has no 'desired_goal.kettle'"),
        (drop, "desired_goal", ["desired_goal"], "has no 'desired_goal.kettle'"),
        (change_key, "deep/er/still", ["deep"], "'episode_1' of 2 is missing or cannot be read"),
        (shorten, "desired_goal/kettle", ["observation"], "has 5 rows of 'desired_goal.light"),
        (put_seven, "pair/_index_0", ["pair"], r"has \[7\] as 'pair.0' in row 1, which is not in"),
    ],
)
def test_an_episode_that_is_not_as_its_space_says(folder, change, key, names, said):
    make_nested("made/nested-v1", NESTED)
    with h5py.File(folder / "made/nested-v1/data/main_data.hdf5", "a") as file:
        change(file, f"episode_1/observations/{key}")
    with pytest.raises(DatasetError, match=said) as caught:
        MinariSource("made/nested-v1", names).read()
    assert "\n" not in str(caught.value)


def test_metadata_without_spaces_run_nothing_to_find_them(folder, tmp_path, monkeypatch):
    make("made/box-v0", BOX, env="Pendulum-v1")
    (tmp_path / "canary.py").write_text("raise SystemExit('the canary has run')")
    monkeypatch.syspath_prepend(tmp_path)
    path = folder / "made/box-v0/data/metadata.json"
    facts = json.loads(path.read_text())
    env = json.loads(facts["env_spec"]) | {"entry_point": "canary:Env", "id": "Canary-v0"}
    facts["env_spec"] = json.dumps(env)
    del facts["observation_space"]
    path.write_text(json.dumps(facts))
    with pytest.raises(DatasetError, match="no 'observation_space', and nothing is run"):
        MinariSource("made/box-v0")
    path.unlink()
    with pytest.raises(DatasetError, match=r"has no .*metadata\.json"):
        MinariSource("made/box-v0")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_steps": "many"}, "say 'many' as 'total_steps'"),
        ({"total_steps": None}, "say None as 'total_steps'"),
        ({"total_steps": float("inf")}, "say inf as 'total_steps'"),
        ({"total_episodes": -1}, "say -1 as 'total_episodes'"),
        ({"ref_min_score": "a", "ref_max_score": "b"}, "say 'a' and 'b' as 'ref_min_score'"),
        ({"ref_min_score": 1, "ref_max_score": 1}, "say 1 and 1 as 'ref_min_score'"),
        ({"ref_min_score": float("nan"), "ref_max_score": 1}, "say nan and 1"),
        ({"minari_version": "99"}, "install a version of minari that does"),
        ({"data_format": "zip"}, "cannot be opened"),
        ({"observation_space": "{}"}, "cannot be opened"),
    ],
)
def test_metadata_that_cannot_be_are_one_line(folder, changes, said):
    make("made/box-v0", BOX)
    path = folder / "made/box-v0/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DatasetError, match=rf"^minari:made/box-v0: .*{said}") as caught:
        MinariSource("made/box-v0").header()
    assert "\n" not in str(caught.value)


def test_a_dataset_by_its_folder(folder, tmp_path):
    make("made/box-v0", BOX)
    by_id = MinariSource("made/box-v0").read()
    moved = (folder / "made/box-v0").rename(tmp_path / "elsewhere")
    for place in (moved, moved / "data"):
        found = find_source(place).read()
        assert found.spec.name == "minari:made/box-v0"
        assert found.spec.sha256 == by_id.spec.sha256 and str(moved) in found.spec.origin
    assert find_source(f"minari:{moved}").name == "minari:made/box-v0"


def test_episodes_that_promise_more_than_the_memory_holds_are_refused_unread(folder):
    make("made/box-v0", BOX)
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file["episode_1"].create_dataset("rewards", (10**13,), "f8", chunks=(1024,))
    with pytest.raises(DatasetError, match=r"does not fit into memory: 80,000\.00 GB \(main_data"):
        MinariSource("made/box-v0").read()


def test_a_compression_that_is_not_installed_is_named(folder):
    make("made/box-v0", BOX)
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        rewards = file["episode_1/rewards"][()]
        del file["episode_1/rewards"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(rewards.shape)
        settings.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (3,))
        space, kind = h5py.h5s.create_simple(rewards.shape), h5py.h5t.IEEE_F64LE
        column = h5py.h5d.create(file["episode_1"].id, b"rewards", kind, space, dcpl=settings)
        column.write_direct_chunk((0,), rewards.tobytes(), filter_mask=0)
    said = r"'episode_1/rewards' is compressed with Blosc \(filter 32001\).*pip install hdf5plugin"
    with pytest.raises(DatasetError, match=said):
        MinariSource("made/box-v0").read()


@pytest.mark.parametrize("name", ["rewards", "observations", None])
@pytest.mark.parametrize("way", ["external link", "soft link", "external storage", "virtual"])
def test_nothing_is_read_from_other_files(folder, tmp_path, way, name):
    """Neither a column nor a whole episode; the other file would be a column that fits."""
    make("made/box-v0", BOX)
    place = "episode_1" if name is None else f"episode_1/{name}"
    private = tmp_path / "private.hdf5"
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        with h5py.File(private, "w") as other:
            file.copy(place, other, name="column")
        if way == "soft link":
            file.move(place, "column")
            file[place] = h5py.SoftLink("/column")
        elif way == "external link" or name is None:
            del file[place]
            file[place] = h5py.ExternalLink(str(private), "column")
        else:
            shape, kind = file[place].shape, file[place].dtype
            del file[place]
            if way == "virtual":
                layout = h5py.VirtualLayout(shape, kind)
                layout[:] = h5py.VirtualSource(str(private), "column", shape)
                file.create_virtual_dataset(place, layout)
            else:
                raw = tmp_path / "raw"
                raw.write_bytes(bytes(100))
                file.create_dataset(place, shape, kind, external=[(str(raw), 0, 100)])
    with pytest.raises(DatasetError, match=f"main_data.hdf5: '{place}' .*is not followed"):
        MinariSource("made/box-v0").read()


def test_groups_that_hold_each_other_end(folder):
    make("made/box-v0", BOX)
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/again"] = file["/"]
    assert len(MinariSource("made/box-v0").read()) == sum(LENGTHS)
