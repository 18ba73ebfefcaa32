from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

from lit_offrl.commands.datasets import main
from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import CATALOG, Reading, resolve


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data directory with one file of our own and one broken one."""
    monkeypatch.setenv("LIT_OFFRL_DATA", str(tmp_path))
    with h5py.File(tmp_path / "hopper-bullet-mine.hdf5", "w") as file:
        file["observations"] = np.arange(60, dtype=np.float32).reshape(4, 15)
        file["actions"] = np.full((4, 3), 2, np.float32)
        file["rewards"] = np.ones(4, np.float32)
        file["terminals"] = np.array([False, False, False, True])
    (tmp_path / "text.hdf5").write_text("no dataset")
    return tmp_path


def test_list_shows_the_catalogue_and_what_is_on_disk(folder, capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in CATALOG)
    line = next(line for line in said.splitlines() if "hopper-bullet-mine" in line)
    assert "HopperBulletEnv-v0" in line and str(folder) in line
    assert "unreadable" in next(line for line in said.splitlines() if "text" in line)


def test_list_filters_by_name(folder, capsys):
    assert main(["list", "--filter", "Walker2d"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "-bullet-" in line]
    assert len(rows) == 3 and all("walker2d" in row for row in rows)
    with pytest.raises(ConfigError, match=r"'wolker2d'.*Did you mean 'walker2d'"):
        main(["list", "--filter", "wolker2d"])


def test_list_groups_by_family_and_filters_by_it(folder, capsys):
    assert main(["list", "maze2d"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].strip() == "maze2d" and "hopper" not in said
    assert said.count("-v1 ") >= 12 and "lit_offrl/maze2d-large-v1" in said
    assert main(["list", "antmaze"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if " antmaze-umaze-v0 " in line)
    assert "refused" in line
    assert main(["list", "locomotion"]) == 0
    assert "hopper-medium-replay-v2" in capsys.readouterr().out


def test_list_of_what_is_on_disk(folder, capsys):
    (folder / "kitchen-mixed-v0.hdf5").write_text("whatever it is")
    assert main(["list", "--on_disk"]) == 0
    said = capsys.readouterr().out
    assert "kitchen-mixed-v0" in said and "hopper-bullet-mine" in said
    assert "kitchen-partial-v0" not in said
    assert main(["list", "adroit", "--on-disk"]) == 0
    assert "none of these is on disk" in capsys.readouterr().out


def test_info_says_why_there_is_no_environment_and_what_is_wrong(folder, capsys):
    for name, said in (
        ("carla-lane-v0", "no CARLA simulator"),
        ("flow-ring-random-v0", "sizes"),
        ("antmaze-umaze-v0", "refused"),
        ("maze2d-large-v1", "--planner waypoint --steps 4000000"),
    ):
        assert main(["info", name]) == 0
        assert said in capsys.readouterr().out


def test_the_cache_is_listed_and_cleared(folder, capsys):
    resolve("hopper-bullet-mine", folder, Reading(cache=ColumnCache(folder / "cache"))).read()
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert "hopper-bullet-mine" in said and str(folder / "cache") in said
    assert main(["cache", "clear"]) == 0
    assert "1 entries removed" in capsys.readouterr().out
    assert ColumnCache(folder / "cache").entries() == []


def test_info_tells_of_an_entry_and_of_a_file(folder, capsys):
    assert main(["info", "ant-bullet-mixed-v0"]) == 0
    said = capsys.readouterr().out
    for expected in (
        "AntBulletEnv-v0",
        "28",
        "373.705955",
        "53,572",
        "dropbox",
        "lit-offrl collect",
    ):
        assert expected in said
    assert main(["info", str(folder / "hopper-bullet-mine.hdf5")]) == 0
    assert "HopperBulletEnv-v0" in capsys.readouterr().out


def test_check_reads_every_value(folder, capsys):
    assert main(["check", "hopper-bullet-mine"]) == 0
    said = capsys.readouterr().out
    assert "1: 1 end in a terminal" in said
    assert "warning: column 'actions' leaves its bounds in 4 rows" in said
    with h5py.File(folder / "hopper-bullet-mine.hdf5", "a") as file:
        file["rewards"][2] = np.nan
    with pytest.raises(DatasetError, match="'rewards' has NaN in row 2"):
        main(["check", "hopper-bullet-mine"])
    with pytest.raises(DatasetError, match=r"text.hdf5: is not an HDF5 file"):
        main(["check", str(folder / "text.hdf5")])


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """A Minari dataset like the kitchen's: 2 episodes of 3 steps, goals that are dictionaries."""
    minari = pytest.importorskip("minari", reason="the package minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    def box(size):
        return spaces.Box(-np.inf, np.inf, (size,), np.float64)

    goal = spaces.Dict({"kettle": box(7), "microwave": box(1)})
    space = spaces.Dict({"observation": box(9), "desired_goal": goal})
    buffers = [
        EpisodeBuffer(
            id=number,
            observations={
                "observation": np.full((4, 9), number, float),
                "desired_goal": {"kettle": np.ones((4, 7)), "microwave": np.ones((4, 1))},
            },
            actions=np.zeros((3, 2), np.float32),
            rewards=np.zeros(3),
            terminations=np.zeros(3, bool),
            truncations=np.arange(3) == 2,
        )
        for number in range(2)
    ]
    bounds = spaces.Box(-1, 1, (2,), np.float32)
    minari.create_dataset_from_buffers(
        "demo/kitchen-v0", buffers, action_space=bounds, observation_space=space
    )
    return tmp_path / "minari" / "demo" / "kitchen-v0"


@pytest.mark.filterwarnings("ignore")
def test_minaris_datasets_are_described_and_checked_like_files(folder, kitchen, capsys):
    for name in ("minari:demo/kitchen-v0", str(kitchen)):
        assert main(["info", name]) == 0
        said = capsys.readouterr().out
        assert "desired_goal.kettle (7), desired_goal.microwave (1), observation (9)" in said
        assert main(["check", name]) == 0
        said = capsys.readouterr().out
        assert "6 × 9, 0 to 1" in said and "6 × 8, 1 to 1" in said and "readable" in said
    parts = ["--minari_observations", "desired_goal.microwave, observation"]
    assert main(["check", "minari:demo/kitchen-v0", *parts]) == 0
    assert "6 × 10, 0 to 1" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"'obsrvation' .*mean 'observation'"):
        main(["check", "minari:demo/kitchen-v0", "--minari_observations", "obsrvation"])
    with pytest.raises(DatasetError, match="minari download demo/other-v0"):
        main(["info", "minari:demo/other-v0"])
    with pytest.raises(ConfigError, match="minari download demo/other-v0"):
        main(["download", "minari:demo/other-v0"])


def test_names_of_d4rls_package_are_described_and_checked(folder, capsys):
    assert main(["info", "d4rl:hopper-medium-v2"]) == 0
    said = capsys.readouterr().out
    assert "d4rl:hopper-medium-v2" in said and "lit_offrl/hopper-v2" in said
    with pytest.raises(ConfigError, match=r"d4rl:hopper-medium-v2: the package d4rl cannot be"):
        main(["check", "d4rl:hopper-medium-v2"])
    for prefix in ("d4rl:", "minari:"):
        with pytest.raises(ConfigError, match=f"'{prefix}' names no dataset"):
            main(["info", prefix])
    with pytest.raises(DatasetError, match=r"d4rl:hoper-medium-v2.*mean 'hopper-medium-v2'"):
        main(["info", "d4rl:hoper-medium-v2"])


def test_a_log_is_converted_and_then_checked(folder, capsys):
    log, output = folder / "log.csv", folder / "robot.hdf5"
    lines = [f"{at % 4},{at},{-at % 3},1,{at // 4}" for at in range(12)]
    log.write_text("\n".join(["x_0,x_1,u,r,id", *lines]))
    roles = ["--observations", "x_*", "--actions", "u", "--reward", "r", "--episode", "id"]
    bounds = ["--action-low", "-1,", "--action_high", "2"]
    with pytest.raises(ConfigError, match="--action_low"):
        main(["convert", str(log), str(output), *roles, *bounds])
    assert not output.exists()
    bounds[1] = "-1.5"
    assert main(["convert", str(log), str(output), *roles, *bounds]) == 0
    assert "observations: 2: x_0, x_1" in capsys.readouterr().out
    assert main(["check", str(output)]) == 0
    said = capsys.readouterr().out
    assert "3: 0 end in a terminal, 3 in a timeout" in said and "12 × 2, 0 to 11" in said
    assert "0 warnings" not in said  # the reward is constant
    assert resolve(output).header().action_low == (-1.5,)


def test_download_of_what_is_on_disk_says_so(folder, capsys):
    assert main(["download", "hopper-bullet-mine"]) == 0
    assert "on disk already" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="Did you mean 'ant-bullet-mixed-v0'"):
        main(["download", "ant-bulet-mixed-v0"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["lst"],
            "unknown verb 'lst' (known: list, info, check, convert, download, cache). Did you mean "
            "'list'?",
        ),
        (["list", "--filtr", "x"], "there is no option '--filtr'. Did you mean '--filter'?"),
        (["info"], "the following arguments are required: NAME|FILE."),
    ],
)
def test_a_mistake_is_one_line(capsys, argv, expected):
    with pytest.raises(ConfigError) as caught:
        main(argv)
    assert "\n" not in str(caught.value) and expected in str(caught.value)


def test_the_command_does_without_torch():
    code = "import sys, lit_offrl.commands.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
