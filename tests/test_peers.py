"""``benchmarks peers`` at tiny sizes, beside checkouts made up here; ``gpu``'s parts on the CPU."""

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.gpu import (
    FitSpeed,
    GraphsCheck,
    checks_table,
    fits_table,
    make_fits,
    run_checks,
    run_contract,
    run_fits,
)
from benchmarks.peer_code import Anything, absent
from benchmarks.peer_ours import trainer
from benchmarks.peer_turns import LoopFailure, process_loop
from benchmarks.peers import Aim, Checkouts, PeerRow, Sizes, missed_table, peers_table, run_peers
from lit_offrl import modules
from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import Transitions
from lit_offrl.modules import graphs
from tests.test_graphs import Tape

TINY = Sizes(
    **{"rows": 300, "observation_dim": 3, "action_dim": 2, "batch": 8, "width": 8},
    **{"maze_rows": 300, "snippets": 200, "horizon": 5, "candidates": 4, "diffusion_steps": 8},
)

CORL = """
import d4rl, gym, pyrallis, torch, wandb
from dataclasses import dataclass

def wrap(env: gym.Env) -> gym.Env:
    return gym.wrappers.TransformObservation(env, lambda state: state)

@dataclass
class TrainConfig:
    device: str = "cuda"
    env: str = "hopper"
    batch_size: int = 256
    buffer_size: int = 2_000_000
    max_timesteps: int = 10
    eval_freq: int = 10

@pyrallis.wrap()
def train(config: TrainConfig):
    env = wrap(gym.make(config.env))
    data = d4rl.qlearning_dataset(env)
    states = torch.tensor(data["observations"])
    assert len(states) == config.buffer_size and data["next_observations"].shape == states.shape
    net = torch.nn.Linear(*env.observation_space.shape, *env.action_space.shape)
    optimizer = torch.optim.Adam(net.parameters())
    wandb.run.save()
    for t in range(config.max_timesteps):
        rows = torch.randint(len(states), (config.batch_size,))
        loss = net(states[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wandb.log({"loss": loss.item()}, step=t)
"""


@pytest.fixture
def corl(tmp_path):
    """A checkout whose files train one layer, but for one that cannot be imported."""
    folder = tmp_path / "corl" / "algorithms" / "offline"
    folder.mkdir(parents=True)
    (folder / "any_percent_bc.py").write_text(CORL)
    (folder / "iql.py").write_text("import nothing_of_that_name")
    return tmp_path / "corl"


@pytest.fixture
def slow_bf16(monkeypatch):
    """A processor that multiplies float32 faster, so that fewer loops have to start."""

    def peak(device, dtype, **options):
        return 1e11 if dtype == torch.float32 else 1e10

    monkeypatch.setattr("benchmarks.peers.matrix_peak", peak)


@pytest.fixture
def forked_loops(monkeypatch):
    """Loops in processes that have this one's imports; the slow tests' have their own server."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)


def test_a_step_of_a_peers_own_loop_is_timed_beside_ours(corl, slow_bf16, forked_loops):
    given = Checkouts(corl=corl)
    rows = list(run_peers(given, sizes=TINY, methods=["bc"], budget=0.01))
    first = rows[0]
    assert [(r.method, r.precision, r.failure) for r in rows] == [("BC", "32-true", None)]
    assert first.peer_parameters == 3 * 2 + 2
    assert first.peer_flops == 2 * 2 * 8 * 3 * 2  # forward, and the weights' gradient
    assert first.parameters == 3 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2
    assert first.ratio == pytest.approx(first.seconds / first.peer_seconds)
    assert first.share == pytest.approx(first.flops / first.seconds / first.peak)
    assert first.turns >= 3
    assert first.met is False  # a layer beside a whole Trainer
    assert 0.5 < sum(first.shares.values()) < 1.01 and "Python between them" in first.shares
    assert first.limit == pytest.approx(first.flops / first.peak)


BCQ = """
import torch
class BCQ:
    def __init__(self, states, actions, high, device):
        assert high == 1.0
        self.net = torch.nn.Linear(states, actions)
        self.optimizer = torch.optim.Adam(self.net.parameters())
    def train(self, buffer, iterations, batch_size):
        for _ in range(iterations):
            state, action, next_state, reward, not_done = buffer.sample(batch_size)
            assert not_done.bool().any() and next_state.shape == state.shape
            loss = (self.net(state) - action).square().mean() + reward.mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
"""
BUFFER = """
import numpy as np, torch
class ReplayBuffer:
    def __init__(self, states, actions, device, max_size):
        self.state, self.next_state = np.zeros((max_size, states)), np.zeros((max_size, states))
        self.action, self.reward = np.zeros((max_size, actions)), np.zeros((max_size, 1))
        self.not_done, self.size = np.zeros((max_size, 1)), 0
    def sample(self, batch_size):
        rows = np.random.randint(self.size, size=batch_size)
        columns = (self.state, self.action, self.next_state, self.reward, self.not_done)
        return [torch.tensor(column[rows]).float() for column in columns]
"""


@pytest.mark.slow
def test_bcqs_authors_train_from_a_buffer_of_the_same_rows(slow_bf16, tmp_path):
    folder = tmp_path / "continuous_BCQ"
    folder.mkdir()
    (folder / "BCQ.py").write_text(BCQ)
    (folder / "utils.py").write_text(BUFFER)
    (row,) = run_peers(Checkouts(bcq=tmp_path), sizes=TINY, methods=["bcq"], budget=0.01)
    assert row.failure is None and row.peer_parameters == 3 * 2 + 2
    assert row.peer_flops == 2 * 2 * 100 * 3 * 2


@pytest.mark.slow
def test_bfloat16_is_timed_where_its_products_are_faster(monkeypatch):
    monkeypatch.setattr(
        "benchmarks.peers.matrix_peak", lambda device, dtype, **_: 32 / dtype.itemsize
    )
    rows = list(run_peers(Checkouts(), sizes=TINY, methods=["bc"], budget=0.01))
    assert [(r.precision, r.peak) for r in rows] == [("32-true", 8.0), ("bf16-mixed", 16.0)]
    assert rows[0].parameters == rows[1].parameters and rows[1].seconds > 0


def test_what_cannot_run_is_one_line_and_the_others_run(
    corl, slow_bf16, forked_loops, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "run_peers", tiny)
    out = tmp_path / "numbers.json"
    argv = ["peers", "--corl", str(corl), "--rows", "iql,td3+bc", "--budget", "0.01"]
    numbers = command.main([*argv, "--json", str(out)])
    assert json.loads(out.read_text())["peers"] == numbers["peers"]
    assert "units" in numbers["machine"]
    found = {r["method"]: r["failure"] for r in numbers["peers"]}
    assert found == {
        "IQL": f"--corl {corl}: algorithms/offline/iql.py: imports nothing_of_that_name, which is "
        "not installed",
        "TD3+BC": f"--corl {corl}: algorithms/offline/td3_bc.py: there is no such file",
    }
    assert all(r["seconds"] > 0 and r["ratio"] is None for r in numbers["peers"])
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("--corl")] == list(found.values())
    with pytest.raises(SystemExit):
        command.main(["peers", "--rows", "sarsa"])
    assert "--rows sarsa: choose from IQL, BC" in capsys.readouterr().err


def tiny(given, **options):
    return run_peers(given, sizes=TINY, **options)


def test_an_environment_without_d3rlpy_is_one_line(slow_bf16, forked_loops, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named d3rlpy' >&2\nexit 1\n")
    python.chmod(0o755)
    given = Checkouts(d3rlpy=python)
    (row, *_) = run_peers(given, sizes=TINY, methods=["CQL"], budget=0.01)
    assert row.failure == (
        f"--d3rlpy {python}: No module named d3rlpy. Make it by: python3 -m venv ENV && "
        "ENV/bin/pip install torch d3rlpy, then --d3rlpy ENV/bin/python."
    )


def test_tables_say_what_differs_and_where_the_time_goes():
    options = {"precision": "32-true", "peer": "CORL", "peak": 1e11, "share": 0.1, "turns": 3}
    missed = {"met": False, "limit": 1e-3, "shares": {"mm": 0.6, "Python between them": 0.4}}
    slow = PeerRow(
        **{"method": "IQL", "seconds": 0.01, "flops": 1e8, "parameters": 1000, "aim": "≤ 0.5"},
        **{"peer_seconds": 0.01, "peer_flops": 2e8, "peer_parameters": 1200, "ratio": 1.0},
        **options | missed,
    )
    alone = PeerRow(
        method="BC", seconds=1e-4, flops=1e7, parameters=10, aim="≤ 0.5", note="x", **options
    )
    table, where = peers_table([slow, alone]), missed_table([slow, alone])
    lines = list(zip(*(column.cells for column in table.columns)))
    assert lines[0][:7] == ("IQL", "CORL", "fp32", "10 ms", "10 ms", "1", "≤ 0.5 *")
    assert lines[1][:7] == ("BC", "CORL", "fp32", "100 µs", "", "", "≤ 0.5")
    assert "IQL: parameters 1,000 here, 1,200 there; GFLOP 0.1 here, 0.2 there" in table.caption
    assert "BC: x" in table.caption and "bf16 is left out" in table.caption
    (line,) = zip(*(column.cells for column in where.columns))
    assert line == ("IQL", "fp32", "1 ms, 0.1", "mm 60%, Python between them 40%")
    assert Aim(0.5).met(0.4, 1.0) and not Aim(0.5).met(0.6, 1.0)
    assert Aim(more=20e-6).met(1.0001e-3, 0.9900e-3) and not Aim(more=20e-6).met(2e-3, 1e-3)


def quits(pace):
    pace.step()
    raise ConfigError("no  more\nof it")


def leaves(pace):
    raise SystemExit(3)


def test_a_loop_that_ends_says_why(forked_loops):
    for start, why in ((quits, "ConfigError: no more of it"), (leaves, "SystemExit: 3")):
        with process_loop(start) as loop, pytest.raises(LoopFailure, match=why):
            loop.time(1)
            loop.time(1)


def test_a_stand_in_takes_part_in_whatever_a_file_does_with_it():
    class Wrapper(Anything.core.Wrapper):
        pass

    @Anything.jit(nopython=True)
    def function():
        pass

    assert isinstance(Wrapper(), Anything) and isinstance(function, Anything)
    assert not isinstance(3, Anything.Array) and callable(Anything.spaces.Box(0, 1).sample)
    assert absent("json", "nothing_of_that_name") == ["nothing_of_that_name"]


def test_no_method_is_left_out(tmp_path):
    """A new one takes part by itself, and its defaults fit the rows that there are."""
    methods = {name for name in modules.__all__ if name.endswith("Module")}
    fits = make_fits(TINY, tmp_path, seed=0)
    assert {fit.kind for fit in fits.values()} == methods - {"OfflineModule", "ImageVAEModule"}
    assert {"BCQ", "DecisionTransformer", "Diffuser", "DecisionDiffuser", "DVF"} <= fits.keys()
    for name, fit in fits.items():
        data = fit.data()
        data.view = getattr(fit.module(data), "view", Transitions)()
        data.setup("fit")
        assert len(data.train_view().rows) >= fit.batch_size, name


@pytest.mark.slow
def test_every_method_is_fitted(tmp_path):
    for name, fit in make_fits(TINY, tmp_path, seed=0).items():
        data = fit.data()
        made = trainer(fit, "32-true", max_steps=1, enable_progress_bar=False)
        made.fit(fit.module(data), data)
        assert made.global_step == 1, name


def test_fits_are_timed_on_any_device():
    options = {"sizes": TINY, "methods": ("BC", "LDCQ Q"), "precisions": ("32-true",)}
    one, other = run_fits(torch.device("cpu"), **options, seconds=0.05)
    assert (one.method, one.batch_size, other.method, other.batch_size) == ("BC", 8, "LDCQ Q", 128)
    for r in (one, other):
        assert r.steps > 0 and r.flops > 0
        assert r.share == pytest.approx(r.flops * r.steps_per_second / r.peak)
    products = 3 * 256 + 256 * 256 + 256 * 2  # of one row, forward
    assert one.flops >= 2 * 8 * (3 * products - 3 * 256)  # no gradient of the observations


def test_fits_by_graphs_are_timed_and_checked_on_any_device_that_captures(monkeypatch):
    monkeypatch.setitem(graphs.RECORDERS, "cpu", Tape)
    methods, options = ("TD3+BC", "LDCQ Q"), {"sizes": TINY, "methods": ("TD3+BC", "LDCQ Q")}
    fits = list(run_fits(torch.device("cpu"), **options, precisions=("32-true",), seconds=0.05))
    assert [(r.method, r.graphs) for r in fits] == [
        *((methods[0], False), (methods[0], True), (methods[1], False)),
    ]
    assert fits[1].flops == fits[0].flops and fits[1].steps > 0
    one, other = run_checks(torch.device("cpu"), **options, steps=24)
    assert (one.eager_because, one.difference, one.resumes) == (None, 0.0, True)
    assert "which rows come next" in other.eager_because and other.difference == 0.0
    assert other.resumes
    table = checks_table([one, GraphsCheck("X", 200, "no", 1.5e-6, False)])
    assert [*table.columns[2].cells] == ["0.0e+00", "1.5e-06"]
    assert [*table.columns[3].cells] == ["to the bit", "DIFFERS"]
    assert table.caption.startswith("X: no")


def test_tests_that_need_a_gpu_are_run_by_pytest(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text("def test_right(): pass\ndef test_wrong(): assert False, 'why'\n")
    result = run_contract((str(file), "-c", "/dev/null", "-p", "no:cacheprovider"))
    assert result.code == 1
    assert "test_some.py::test_wrong" in result.summary and "1 failed, 1 passed" in result.summary


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_that_is_one_line(capsys):
    with pytest.raises(SystemExit):
        command.main(["gpu"])
    assert capsys.readouterr().err.splitlines()[-1] == (
        "python -m benchmarks: error: gpu: PyTorch sees no GPU here; the other benchmarks run on "
        "the CPU"
    )


def test_fits_have_a_line_each():
    eager = FitSpeed("IQL", "32-true", 256, 100, 3000.4, 5e8, 4e13, 0.0375)
    table = fits_table([eager, replace(eager, steps_per_second=6600.0, graphs=True)])
    one, other = (list(map(str, row)) for row in zip(*(column.cells for column in table.columns)))
    assert one == ["IQL", "32-true", "eager", "256", "3,000", "", "0.5", "3.8%"]
    assert other[2:6] == ["graphs", "256", "6,600", "2.2 ×"]
    assert "32-true 40 TFLOP/s" in table.caption
