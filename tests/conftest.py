"""What all rooms' tests share: one thread, checked shapes, a small dataset, the command line."""

import contextlib
import gc
import json
import os
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small nets with more threads fall off a cliff

from jaxtyping import install_import_hook

# Before anything imports them: shapes in signatures are checked while tests run.
install_import_hook(["lit_offrl.diffusion", "lit_offrl.nets"], "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from benchmarks.kills import differences, state_of  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests of whole runs come first, so that no process is left with the longest of them."""
    items.sort(key=lambda item: item.path.parent.name != "tests")


def pytest_collection_finish():
    """What all files have imported is not looked through for garbage again and again.

    submitit is imported while no test captures anything: its import closes all handlers of logs,
    and absl's, which OGBench brings, would close the stream that it began with: pytest's own.
    """
    with contextlib.suppress(ImportError):
        import submitit  # noqa: F401
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def data_directory(tmp_path_factory):
    """Datasets and cached columns go to a folder of the tests, never to the user's own."""
    folder = tmp_path_factory.mktemp("datasets")
    os.environ["LIT_OFFRL_DATA"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def d4rl_file(tmp_path_factory):
    """20 episodes × 30 steps that look like Pendulum's in D4RL's layout; half end terminally."""
    from lit_offrl.datasets.hdf5 import write_hdf5

    random = np.random.default_rng(0)
    episodes, steps = 20, 30
    rows = episodes * steps
    angle = np.cumsum(random.normal(0, 0.1, (episodes, steps)), axis=1).ravel()
    ends = np.zeros(rows, bool)
    ends[steps - 1 :: steps] = True
    terminals = ends & (np.arange(rows) // steps % 2 == 0)
    columns = {
        "observations": np.stack([np.cos(angle), np.sin(angle), random.normal(size=rows)], 1),
        "actions": random.uniform(-2, 2, (rows, 1)),
        "rewards": -(angle**2),
    }
    path = tmp_path_factory.mktemp("data") / "pendulum.hdf5"
    write_hdf5(
        path,
        {name: column.astype(np.float32) for name, column in columns.items()}
        | {"terminals": terminals, "timeouts": ends & ~terminals},
        {
            "env_id": "Pendulum-v1",
            "action_low": np.array([-2.0], np.float32),
            "action_high": np.array([2.0], np.float32),
            "max_episode_steps": 200,
        },
    )
    return path


@pytest.fixture(scope="session")
def small_data(d4rl_file, tmp_path_factory):
    """Give the small dataset in the layout that a data module reads."""
    import h5py

    from lit_offrl.datasets.lerobot_writing import write_lerobot
    from lit_offrl.datasets.robomimic_writing import write_robomimic

    folder, made = tmp_path_factory.mktemp("layouts"), {}
    note = {"env_id": "Pendulum-v1", "max_episode_steps": 200}
    note |= {"action_low": [-2.0], "action_high": [2.0]}
    named = {"observations": "observation.state", "actions": "action"}
    named |= {"rewards": "next.reward", "terminals": "next.terminated"}

    def make(data):
        with h5py.File(d4rl_file) as file:
            columns = {name: file[name][()] for name in named}
        if data == "RobomimicDataModule":
            return write_robomimic(folder / "demos.hdf5", columns, [30] * 20, note=note)
        features = {named[name]: values for name, values in columns.items()}
        return write_lerobot(folder / "lerobot", features, [30] * 20, note=note)

    def give(data):
        if data in ("LeRobotDataModule", "RobomimicDataModule") and data not in made:
            made[data] = make(data)
        return str(made.get(data, d4rl_file))

    return give


@pytest.fixture(autouse=True)
def unsignalled():
    """A signal that a test has sent to this process is not one of the next test's."""
    yield
    signals = sys.modules.get("lit_offrl.common.signals")
    if signals is not None and not signals.state.listening:
        signals.state = signals._State()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory; what strategies leave in the environment goes afterwards."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow store with its tables, which take seconds to make."""
    from lit_offrl.tracking.store import open_client

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_tables(empty_store, folder):
    """Let MLflow's default store have its tables already."""
    shutil.copy(empty_store, folder)


@pytest.fixture
def undrawn(monkeypatch):
    """Let fits save empty figures of their curves, since axes and text take as long as such a fit.

    The figures' own tests, the notebooks and fits that take neither this nor ``command`` draw them.
    """
    from matplotlib.figure import Figure

    from lit_offrl.callbacks import record

    def save_empty(figure, path):
        return save_figure(Figure(figsize=(1, 1)), path)

    save_figure = record.save_figure
    monkeypatch.setattr(record, "save_figure", save_empty)
    monkeypatch.setattr(record, "training_curves", lambda history: Figure(figsize=(1, 1)))


@pytest.fixture
def command(small_data, folder, undrawn):
    """Build arguments of a small, quiet fit of any module on the small dataset."""

    def build(*options, module="BCModule", verb="fit", data="PyBulletDataModule"):
        words = [verb, "--model", module, "--data", data]
        words += ["--data.init_args.dataset", small_data(data), "--trainer.accelerator", "cpu"]
        words += ["--data.init_args.batch_size", "64", "--trainer.logger", "false"]
        words += ["--trainer.enable_model_summary", "false"]
        words += ["--trainer.enable_progress_bar", "false"]
        if verb == "fit":
            words += ["--trainer.max_steps", "6", "--evaluation.episodes", "0"]
        if module == "BCModule":
            words += ["--model.init_args.hidden", "[8]"]
        return [*words, *options]

    return build


@pytest.fixture
def lit(command):
    """Run the command line in this process; returns the exit code."""
    from lit_offrl.__main__ import main

    def run(*options, **kwargs):
        return main(command(*options, **kwargs))

    return run


@pytest.fixture(scope="session")
def made_record():
    """Build an evaluation record with a given mean score: 2 episodes, 5 below and 5 above it."""
    from lit_offrl.evaluation.record import EvaluationRecord

    def build(score, seed, /, **changes):
        scores = (score - 5.0, score + 5.0)
        facts = {
            "method": "BCModule",
            "env_id": "HopperBulletEnv-v0",
            "seed": 0,
            "num_envs": 2,
            "episodes": (0, 1),
            "seeds": (11, 12),
            "returns": tuple(10 * each for each in scores),
            "lengths": (3, 4),
            "terminated": (True, False),
            "clipped_steps": 0,
            "scores": scores,
            "dataset": "hopper",
            "dataset_sha256": "ab" * 32,
            "ref_min_score": 0.0,
            "ref_max_score": 1000.0,
            "checkpoint_rule": "last",
            "training_seed": seed,
            "training_steps": 500,
            "versions": {"python": "3.11", "torch": "2.13"},
            "date": "2026-01-01T00:00:00+00:00",
        }
        return EvaluationRecord(**{**facts, **changes})

    return build


# A stand-in for fit and evaluate, which needs no imports and does as its mode or dataset is named:
# its checkpoint is 5 more than those that it takes or goes on from.
STUB = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
def value(name): return words[words.index(name) + 1] if name in words else None
with open("calls", "a") as file:
    file.write(json.dumps([words, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
if words[0] == "evaluate":
    steps = float(Path(value("--ckpt_path")).read_text())
    output = Path(value("--output"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"scores": [steps, steps + 1], "returns": [0, 0]}))
    sys.exit()
last = Path(value("--checkpoint.dirpath")) / "last.ckpt"
begun = "--ckpt_path" in words
data = value("--model.mode") or value("--data.init_args.dataset")
taken = sum(float(Path(word).read_text()) for word in words[1:] if word.endswith("last.ckpt"))
last.parent.mkdir(parents=True, exist_ok=True)
def save(number=0, frame=None):
    last.write_text(str(taken + 5))
    if number: sys.exit(128 + number)
if data == "fails" and not begun:
    save()
    print("a line")
    sys.exit("lit-offrl: error: no such thing.")
if data == "waits" and not begun:
    signal.signal(signal.SIGTERM, save)
    Path("waiting").touch()
    time.sleep(60)
if data == "keeps nothing": sys.exit()
if data == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
save()
if data == "ends early" and not begun: sys.exit()
finished = {"step": 9, "max_steps": 9, "reason": "max_steps"}
(last.parent / "finished.json").write_text(json.dumps(finished))
"""


@pytest.fixture
def stub(folder, monkeypatch):
    """The commands are the stand-in's; returns what was called, with the GPUs of each."""
    (folder / "stub.py").write_text(STUB)
    from lit_offrl.experiments import process

    monkeypatch.setattr(process, "PROGRAM", (sys.executable, "-S", str(folder / "stub.py")))

    def calls():
        path = folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    return calls


@pytest.fixture
def here():
    """Processes that are none: each command runs in this one, which has all imports already."""
    from lit_offrl.__main__ import main
    from lit_offrl.experiments.process import PROGRAM, Children

    class Here(Children):
        def run(self, words, log, environment, keep, stops=None):
            log.touch()
            return main(words[len(PROGRAM) :])

    return Here()


@pytest.fixture
def same_state():
    """Assert that two checkpoints hold the same weights, optimiser, curves and counters."""

    def check(one, other):
        assert not differences(state_of(one), state_of(other))

    return check


@pytest.fixture(scope="session")
def ogbench_files(tmp_path_factory):
    """Write a pair of files as OGBench's scripts do: pointmaze-medium, 4 + 1 episodes of 6 rows.

    The point walks by the goal of task 1, (20, 20), in steps of 0.25 m: within 1 m of it are the
    first three rows of episode 1 and the last three of episode 3.
    """

    def arrays(starts, steps=6):
        x = np.concatenate([start + 0.25 * np.arange(steps) for start in starts])
        states = np.stack([x, np.full_like(x, 20.0)], axis=1).astype(np.float32)
        ends = np.arange(len(x)) % steps == steps - 1
        random = np.random.default_rng(0)
        actions = random.uniform(-1, 1, (len(x), 2)).astype(np.float32)
        positions = {"qpos": states, "qvel": np.zeros_like(states)}
        return {"observations": states, "actions": actions, "terminals": ends} | positions

    def write(folder=None, base="pointmaze-medium-navigate-v0", **changes):
        folder = tmp_path_factory.mktemp("ogbench") if folder is None else folder
        train = arrays([0.0, 20.4, 5.0, 18.3]) | changes
        kept = {name: values for name, values in train.items() if values is not None}
        np.savez_compressed(folder / f"{base}.npz", **kept)
        np.savez_compressed(folder / f"{base}-val.npz", **arrays([10.0]))
        return folder

    return write
