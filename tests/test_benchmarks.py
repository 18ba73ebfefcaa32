"""The benchmarks at tiny sizes: what they count and compare is right, whatever the clock says."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import kills, mapped, trackers
from benchmarks.acd import plan, run_fit, run_passes
from benchmarks.calls import run_calls
from benchmarks.check_exported import difference
from benchmarks.exported import run_exported
from benchmarks.futures import Lever, levers_table, run_levers
from benchmarks.latents import (
    EXACT,
    FEW,
    latent_table,
    make_stages,
    picture_table,
    run_latents,
    run_pictures,
)
from benchmarks.loader import run_loader
from benchmarks.machine import held_bytes
from benchmarks.made_up import Settings, make_dataset, make_maze, make_module, settings
from benchmarks.map_style import MapStyleFutureStates, MapStyleSnippets, MapStyleTransitions
from benchmarks.maze import run_scores, run_speed
from benchmarks.peer import d3rlpy_algorithm, d3rlpy_speeds
from benchmarks.priority import run_priority
from benchmarks.serving import _Client, _wrong, run_serving
from benchmarks.signals import SignalledFit
from benchmarks.start import SHAPES, ProcessorResult, StartResult, processor_seconds, run_starts
from benchmarks.step import PARTS, count_flops, run_step
from benchmarks.trace import run_trace
from benchmarks.trackers import TrackerResult
from benchmarks.vae import AUTHORS, run_vae
from benchmarks.value import autoregressive_value, counted, run_value
from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.views import FutureStates, Snippets, Transitions
from lit_offrl.modules import BCModule, DecisionTransformerModule, ImageVAEModule
from tests.helpers import forked, unchecked

ONLY_BY_NAME = {
    "coverage",
    "trackers",
    "signals",
    "kills",
    "trace",
    "peers",
    "gpu",
    "futures",
    "serve",
    "export",
}
CPU = torch.device("cpu")
TINY = {"width": 16, "blocks": 1, "latents": 2, "history": 2, "hidden": [8], "num_samples": 3}
SAMPLING_STEPS = 4
TINY["sampling_steps"] = SAMPLING_STEPS


def test_what_must_hold_after_a_signal_is_told_from_what_must_not():
    right = {
        **{"number": signal.SIGTERM, "delay": 1.0, "code": 143, "seconds": 0.5, "heard": True},
        **{"stepped": True, "saved": True, "finished": False, "statuses": ("KILLED",)},
    }
    for changes, wrong in (
        ({}, []),
        ({"code": 0, "finished": True, "statuses": ("FINISHED",)}, []),
        ({"heard": False, "code": -15, "stepped": False, "saved": False}, []),
        ({"stepped": False, "saved": False}, []),
        ({"code": 0}, ["exit code 0"]),
        ({"code": -15}, ["exit code -15"]),
        ({"saved": False}, ["no checkpoint"]),
        ({"statuses": ("FINISHED", "RUNNING")}, ["RUNNING"]),
        ({"seconds": 6.0}, ["gone after 6.0 s"]),
    ):
        lines = list(SignalledFit(**{**right, **changes}).violations())
        assert len(lines) == len(wrong) and all(w in line for w, line in zip(wrong, lines))


def test_what_a_killed_fit_ends_in_is_told_from_the_unbroken_end(folder, monkeypatch, capsys):
    """A stand-in for fits that adds the steps up; one of them loses a step when it goes on."""
    checkpoints = {"Good": 0.0, "Bad": 1.0}

    def fit(words, run, steps_per_call, end=-1):
        run.mkdir(exist_ok=True)
        last = run / "last.ckpt"
        begin = kills.state_of(last)["global_step"] if last.exists() else 0
        step = 40 if end == -1 else end // 10 * 10
        lost = checkpoints[words[words.index("--model") + 1]] * (begin > 0)
        if step:
            state = dict.fromkeys(kills._STATE, 0) | {"global_step": step}
            torch.save(state | {"state_dict": {"w": torch.tensor(step - lost)}}, last)
        (run / "curves.csv").write_text("".join(f"{each}\n" for each in range(0, step, 10)))
        return begin

    monkeypatch.setattr(kills, "_fit", fit)
    found = list(kills.run_kills(methods=dict.fromkeys(checkpoints, ""), steps=40, times=3))
    assert [(r.method, r.steps_per_call) for r in found] == [
        (method, length) for method in checkpoints for length in (1, 100)
    ]
    for r in found:
        assert list(r.kills) == sorted({*r.kills}) and len(r.kills) == len(r.resumed) == 3
        assert r.resumed == tuple(kill // 10 * 10 for kill in r.kills)
        wrong = [f"{r.method}-{r.steps_per_call}: /state_dict/w"]
        assert r.violations == (wrong if r.method == "Bad" else [])
    monkeypatch.setattr(command, "run_kills", lambda **_: iter(found))
    command.main(["kills"])
    printed = capsys.readouterr().out
    assert "killed by SIGKILL" in printed and "Bad-100: /state_dict/w" in printed


def in_a_fork(command, *, env, cwd, **_):
    """Run what kills.py has a new Python run in a process of its own that has all imports."""

    def run():
        os.chdir(cwd)
        sys.argv = command[2:]
        with unchecked():
            exec(compile(sys.argv[0], "kills", "exec"), {})

    process = forked(run, stderr=f"{cwd}/errors")
    process.join()
    errors = Path(cwd, "errors").read_text()
    return subprocess.CompletedProcess(command, process.exitcode, stderr=errors)


@pytest.mark.slow
def test_fits_that_are_killed_end_as_unbroken_ones(monkeypatch):
    monkeypatch.setattr(kills, "subprocess", SimpleNamespace(run=in_a_fork))
    methods = {name: kills.METHODS[name] for name in ("IQLModule", "LDCQStage1Module")}
    for r in kills.run_kills(methods=methods, lengths=(100,), times=2, steps=120):
        assert r.violations == []


def test_the_loggers_threads_are_timed_apart_from_all_others(monkeypatch):
    monkeypatch.setattr(trackers, "_THREADS", ("sends", "samples"))
    worked, over, own = threading.Barrier(4), threading.Event(), {}

    def work():
        while time.thread_time() < 0.02:
            pass
        own[threading.current_thread().name] = time.thread_time()
        worked.wait()
        over.wait()

    names = ("sends", "samples", "another")
    started = [threading.Thread(target=work, name=name) for name in names]
    for each in started:
        each.start()
    worked.wait()
    assert own["sends"] + own["samples"] <= trackers.threads_seconds() < sum(own.values())
    over.set()
    for each in started:
        each.join()
    shares = {"logging_share": 0.002, "threads_share": 0.003, "end_seconds": 1.0, "unsent": False}
    fit = TrackerResult("server", 90.0, 100.0, 0.9, 0.99, **shares)
    table = command.tracker_table([fit, replace(fit, threads_share=0.009)])
    rows = [list(map(str, row)) for row in zip(*(column.cells for column in table.columns))]
    assert [row[1:4] for row in rows] == [
        ["0.50%", "0.20%", "0.30%"],
        ["1.10% *", "0.20%", "0.90%"],
    ]


def test_sizes_are_the_configs_own():
    quick, paper = settings("quick"), settings("paper")
    assert (paper.module["width"], paper.module["blocks"], paper.module["latents"]) == (256, 8, 64)
    assert paper.batch_size == 128
    assert quick.module["width"] < paper.module["width"]
    assert quick.module["diffusion_steps"] == paper.module["diffusion_steps"]


def same(one: NamedTuple, other: tuple[torch.Tensor, ...]) -> bool:
    return all(
        torch.equal(a, b.to(a.dtype) if isinstance(b, torch.Tensor) else torch.tensor(b))
        for a, b in zip(one, other, strict=True)
    )


def test_both_loaders_hand_out_the_same_rows():
    """A ratio of speeds means something only if the work is the same."""
    dataset = make_dataset(200, seed=0, longest=12)
    steps, future = Transitions(), FutureStates(gamma=0.9, history=3)
    slow = MapStyleTransitions(dataset, steps)
    bound = steps.bind(dataset)
    batch = bound.batch(bound.rows)
    for i in range(len(slow)):
        assert same([part[i] for part in batch if part is not None], slow[i])

    slow = MapStyleFutureStates(dataset, future, seed=0)
    bound = future.bind(dataset)
    uniforms = np.random.default_rng(1).random(len(slow))
    batch = bound.batch(bound.rows, torch.tensor(uniforms)[:, None])
    fields = [
        *("observations", "actions", "rewards", "next_observations", "terminals"),
        *("future_observations", "future_absorbed", "offsets"),
        *("history", "history_actions", "history_mask"),
    ]
    assert batch.future_absorbed.any() and not batch.history_mask.all()
    for i, row in enumerate(bound.rows.tolist()):
        assert same([getattr(batch, name)[i] for name in fields], slow.make(row, uniforms[i]))

    maze, snippets = make_maze(200, seed=0, longest=30), Snippets(7)
    slow, bound = MapStyleSnippets(maze, snippets), snippets.bind(maze)
    batch = bound.batch(bound.rows)
    assert len(slow) == len(bound.rows) > 50
    for i in range(len(slow)):
        for one, other in zip([part[i] for part in batch if part is not None], slow[i]):
            torch.testing.assert_close(one, other)


def test_loader_gives_a_ratio_for_each_view_and_batch_size():
    results = run_loader(
        device=CPU, rows=3000, batch_sizes=(8, 16), history=2, batches=10, budget=0.05
    )
    assert [(r.data, r.view.partition("(")[0], r.batch_size) for r in results] == [
        (data, view, size)
        for data, view in [
            *(("hopper", "Transitions"), ("hopper", "FutureStates")),
            *(("maze2d", "Transitions"), ("maze2d", "Snippets")),
        ]
        for size in (8, 16)
    ]
    for r in results:
        assert r.ratio == pytest.approx(r.rows_per_second / r.map_style_rows_per_second)
        assert r.d3rlpy_ratio is None


def test_mapped_rows_are_gathered_as_numpy_gathers_them(folder, monkeypatch):
    mapped._write(folder, 1000)
    dataset = mapped._open(folder)
    assert dataset.columns["timeouts"].nonzero()[0].tolist() == [399, 799, 999]
    bound = Transitions().bind(dataset)
    assert len(bound.spans) == 997
    batch = bound.batch(bound.rows[::7])
    names = ("observations", "actions", "rewards", "terminals", "next_observations")
    gathered = mapped._gather(dataset.columns, bound.rows[::7].numpy())
    for name, other in zip(names, gathered, strict=True):
        assert getattr(batch, name).numpy().tolist() == other.tolist()

    sizes = {"batch_size": 8, "together": 5, "cold_batches": 10, "budget": 0.01}
    (r,) = mapped.run_mapped(sizes=(900,), **sizes)
    assert r.rows == 900 and r.ratio == pytest.approx((r.together + r.order) / r.numpy)
    assert min(r.alone, r.cold, r.cold_wall, r.numpy_cold, r.numpy_cold_wall) > 0
    monkeypatch.setattr(mapped, "free_bytes", lambda _: 26_999)
    assert list(mapped.run_mapped(sizes=(900,), **sizes)) == []


def test_a_million_rows_take_little_more_memory_than_their_columns():
    """Windows and an epoch's order included: the issue's bound is 1.2."""
    maze = make_maze(50_000, seed=0)
    columns = sum(column.nbytes for column in maze.columns.values())
    assert columns == 50_000 * (4 * (4 + 2 + 1 + 2) + 2)
    for view in (Transitions(), Snippets(30)):
        bound = view.bind(maze)
        order = RowOrder(bound.spans, 8, seed=0)
        before = held_bytes((bound, order), beside=maze.columns.values())
        bound.batch(order.rows(0))
        after = held_bytes((bound, order), beside=maze.columns.values())
        assert after - before == 4 * len(bound.spans)  # an int32 a row
        assert after < 0.2 * columns


def test_d3rlpys_numbers_stand_beside_those_of_the_same_view(tmp_path):
    """With another script in its place: the real one needs d3rlpy."""
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys, numpy\n"
        "columns, out, budget, *jobs = sys.argv[1:]\n"
        "rows = len(numpy.load(columns)['timeouts'])\n"
        "numbers = [job.split(',') for job in jobs]\n"
        "open(out, 'w').write(json.dumps([rows + int(w) + int(b) for w, b in numbers]))\n"
    )
    maze, python = make_maze(200, seed=0), Path(sys.executable)
    jobs = [(0, 128), (30, 256)]
    assert d3rlpy_speeds(python, maze, jobs, budget=0.1, script=script) == [328, 486]
    script.write_text("raise SystemExit('No module named d3rlpy')")
    with pytest.raises(ConfigError, match=r"No module named d3rlpy\. Make it by: python3 -m venv"):
        d3rlpy_speeds(python, maze, jobs, budget=0.1, script=script)
    with pytest.raises(ConfigError, match="nowhere"):
        d3rlpy_speeds(Path("nowhere"), maze, jobs, budget=0.1)


PEER = """
import json, sys
columns, *said = sys.argv[1:]
print("ready", flush=True)
for line in sys.stdin:
    if int(line) == 13:
        raise SystemExit("no more")
    open("asked.txt", "a").write(" ".join([*said, line]))
    print(json.dumps([0.1, 0.05, 0.9, 0.45]), flush=True)
"""


def tiny_plan(method):
    """The config's method with small networks, on batches of 8 rows."""
    size = {"hidden": [8]} if method == "iql" else {"hidden": [8], "width": 16, "blocks": 1}
    if method != "iql":
        size["num_samples"] = 3
    return plan(method, **size)._replace(batch_size=8)


def test_a_method_is_timed_as_its_config_says():
    acd = plan("acd")
    made = acd.make(acd.data(), seed=0).hparams
    assert (made["num_samples"], made["omega"], acd.batch_size) == (64, 3.0, 256)
    assert made["diffusion_steps"] == 5 and acd.kind.__name__ == "ACDModule"


def test_steps_and_decisions_are_timed_beside_a_matrix_product():
    results = run_passes(device=CPU, plans=tiny_plan, size=64, budget=0.01)
    names = [r.name for r in results]
    assert [name.partition(",")[0] for name in names] == [
        *("IQL step", "ACD actor's step", "ACD step", "IDQL step", "DQL step"),
        *("ACD decision", "ACD-F decision", "IDQL decision", "DQL decision"),
    ]
    found = dict(zip(names, results, strict=True))
    for r in results:
        assert 0 < r.fastest <= r.seconds and r.flops > 0
        assert r.share == pytest.approx(r.flops / r.fastest / r.peak)
        assert r.median_share == pytest.approx(r.flops / r.seconds / r.median_peak)
    # a joint step is the actor's and the critics', which are IDQL's, too, but for the advantage
    assert found["ACD actor's step"].flops < found["ACD step"].flops
    times = 2 * 5 * (64 * 128 + 128 * 128 + 128 * 16)  # once a decision, whatever N is
    one = found["ACD decision"].flops - times
    assert 2.9 * one < found["ACD-F decision, N = 3"].flops - times < 3.1 * one


def test_a_fit_is_timed_in_turns_with_d3rlpys(folder, monkeypatch):
    """With another script in its place: the real one needs d3rlpy."""
    Path("peer.py").write_text(PEER)
    monkeypatch.setattr("benchmarks.peer._STEPS", Path("peer.py").absolute())
    python = Path(sys.executable)
    result = run_fit(device=CPU, plans=tiny_plan, steps=5, turns=3, peer_python=python)
    assert (result.batch_size, result.steps, result.turns) == (8, 5, 3)
    assert result.peer_seconds == pytest.approx(1.0 / 5)
    assert result.peer_sampling == pytest.approx(0.1 / 5)
    assert result.peer_cpu_seconds == pytest.approx(0.5 / 5)
    assert result.ratio == pytest.approx(result.seconds / result.peer_seconds)
    assert result.cpu_ratio == pytest.approx(result.cpu_seconds / result.peer_cpu_seconds)
    assert Path("asked.txt").read_text().splitlines() == ["1 8 8 0.0003 IQL 20"] + 3 * [
        "1 8 8 0.0003 IQL 5"
    ]
    alone = run_fit(device=CPU, plans=tiny_plan, steps=2, turns=2)
    assert alone.ratio is None and alone.seconds > 0


def test_a_peer_that_ends_says_why(folder):
    sizes = {"batch_size": 8, "hidden": (4, 4), "learning_rate": 1e-3, "threads": 1}
    rows, python = make_maze(50, seed=0), Path(sys.executable)
    Path("peer.py").write_text(PEER)
    with (
        d3rlpy_algorithm(python, rows, **sizes, script=Path("peer.py")) as peer,
        pytest.raises(ConfigError, match=r"no more\. Make it by: python3 -m venv"),
    ):
        peer.step(13)
    Path("peer.py").write_text("raise SystemExit('No module named d3rlpy')")
    with (
        pytest.raises(ConfigError, match="No module named d3rlpy"),
        d3rlpy_algorithm(python, rows, **sizes, script=Path("peer.py")),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="nowhere"),
        d3rlpy_algorithm(Path("nowhere"), rows, **sizes),
    ):
        pass


def test_priorities_are_timed_beside_a_draw_that_sums_them_all():
    result = run_priority(device=CPU, items=500, batch_size=8, repeats=2, budget=0.02)
    assert (result.items, result.batch_size) == (500, 8)
    assert result.ratio == pytest.approx(result.multinomial_seconds / result.draw_seconds)
    assert result.update_seconds > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_step_is_the_sum_of_its_parts(precision):
    result = run_step(
        "tiny",
        Settings(TINY, batch_size=8, gradient_clip=1.0),
        device=CPU,
        precision=precision,
        rows=300,
        budget=0.05,
        profiled=precision == "32-true",
    )
    assert [part.name for part in result.parts] == [*PARTS, "optimiser"]
    assert all(part.flops > 0 for part in result.parts[:-1])
    assert result.seconds == pytest.approx(sum(part.seconds for part in result.parts))
    assert result.share == pytest.approx(result.flops / result.seconds / result.peak)
    assert 0 < result.share < 1
    if result.consumers:
        assert 0 < sum(result.consumers.values()) <= 1


def test_q_loss_of_some_rows_is_scaled_to_the_batch():
    plan, counts = Settings(TINY, batch_size=8, gradient_clip=1.0), {}
    for rows in (None, 2):
        result = run_step("tiny", plan, device=CPU, rows=300, q_rows=rows, budget=0.01)
        q = next(part for part in result.parts if part.name == "q")
        assert q.measured_rows == (rows or 8)
        counts[rows] = q.flops
    # linear but for what no row has of its own: the latents' first query, the embedded time
    assert counts[2] == pytest.approx(counts[None], rel=0.2)


def test_step_with_cached_values_says_what_its_steps_cost():
    """The config's own steps are not Algorithm 1's: nothing is sampled in them."""
    options = TINY | {"values": "cached", "warmup_steps": 5}
    plan = Settings(options, batch_size=8, gradient_clip=1.0)
    result = run_step("tiny", plan, device=CPU, rows=300, budget=0.01)
    parts = {part.name: part.seconds for part in result.parts}
    assert result.row_seconds == pytest.approx(parts["q"] / 8)
    assert result.warmup_seconds == pytest.approx(sum(parts.values()) - parts["q"])
    once = run_step("tiny", plan._replace(module=TINY), device=CPU, rows=300, budget=0.01)
    assert once.row_seconds is None and once.warmup_seconds is None
    assert once.flops == result.flops


def test_flops_of_known_products():
    left, right = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert count_flops(lambda: (left @ right).sum().backward()) == 3 * (2 * 3 * 5 * 7)
    query = torch.ones(2, 4, 6, 8)  # two products of 6 × 8 by 8 × 6, for 2 · 4 heads
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(query, query, query)) == 2 * (2 * 4 * 6 * 6 * 8) * 2


TINY_VAE = {"device": CPU, "steps": 2, "batch_size": 4, "horizon": 3, "width": 8, "budget": 0.02}


@pytest.mark.parametrize("faster", [True, False])
def test_the_vae_step_is_timed_in_bfloat16_where_that_is_faster(monkeypatch, faster):
    def peak(device, dtype, **_):
        return 2e9 if (dtype is torch.bfloat16) == faster else 1e9

    monkeypatch.setattr("benchmarks.vae.matrix_peak", peak)
    result = run_vae("AntMaze", 4, **TINY_VAE)
    assert result.authors_seconds == AUTHORS["AntMaze"]
    assert result.share == pytest.approx(result.flops / result.seconds / result.peak)
    # twice the rows, twice the products
    wider = run_vae("AntMaze", 4, **TINY_VAE | {"batch_size": 8})
    assert wider.flops == pytest.approx(2 * result.flops, rel=0.05)
    assert (result.half_seconds is not None) == (result.half_loss is not None) == faster
    if result.half_loss is not None:  # the same steps but for the rounding
        assert result.half_loss == pytest.approx(result.loss, rel=0.02)
        assert result.half_loss != result.loss


def test_calls_for_a_value_are_flat_for_dvf_and_grow_for_the_roll_out():
    results = run_value(
        "tiny", TINY, device=CPU, states=2, num_samples=3, horizons=(2, 4, 1000), longest=4,
        budget=0.02,
    )  # fmt: skip
    assert [r.calls for r in results] == [SAMPLING_STEPS] * 3
    assert [r.autoregressive_calls for r in results] == [h * SAMPLING_STEPS for h in (2, 4, 1000)]
    assert [r.measured_steps for r in results] == [2, 4, 4]
    for r in results:
        assert r.ratio == pytest.approx(r.autoregressive_seconds / r.seconds)


def test_levers_are_counted_by_products_and_valued_by_returns():
    levers = (
        Lever("paper"),
        Lever("naive", naive=True),
        Lever("half the steps", sampling_steps=5),
        Lever("per state", latents_per="state"),
        Lever("cached", cached=True),
    )
    results = {
        r.name: r
        for r in run_levers(
            device=CPU, steps=2, held_out=6, repeats=2, budget=0.01, levers=levers,
            timed_states={"sample": 1, "state": 1}, paper=TINY | {"latents": 8}, small=TINY,
        )
    }  # fmt: skip
    paper = results["paper"]
    assert results["per state"].flops < 0.5 * paper.flops < paper.flops < results["naive"].flops
    assert results["cached"].flops == pytest.approx(paper.flops / 128 * 0.6)
    # what is encoded once does not get less with the steps
    assert 0.5 * paper.flops < results["half the steps"].flops < 0.6 * paper.flops
    assert all(-1 <= r.correlation <= 1 and r.error > 0 and r.noise > 0 for r in results.values())
    assert levers_table(list(results.values())).row_count == len(levers)


def test_value_calls_do_not_depend_on_the_horizon_and_roll_outs_do():
    """Counted on real runs, with as many rows in each call."""
    dataset = make_dataset(300, seed=0)
    module = make_module(TINY | {"policy_representation": "none"}, dataset, CPU, seed=0)
    states = torch.as_tensor(dataset.columns["observations"][:2])
    for horizon in (10, 1000):
        with counted(module) as seen:
            value = module.value(states, steps_left=torch.full((2,), float(horizon)), num_samples=3)
        assert value.shape == (2,)
        assert (seen.calls, seen.rows) == (SAMPLING_STEPS, SAMPLING_STEPS * 2 * 3)
    for steps in (10, 30):
        with counted(module) as seen:
            value = autoregressive_value(module, states, None, steps=steps, num_samples=3, seed=0)
        assert value.shape == (2,)
        assert (seen.calls, seen.rows) == (steps * SAMPLING_STEPS, steps * SAMPLING_STEPS * 2 * 3)


def test_roll_out_without_steps_is_the_first_reward():
    dataset = make_dataset(300, seed=0)
    module = make_module(TINY | {"policy_representation": "none"}, dataset, CPU, seed=0)
    states = torch.as_tensor(dataset.columns["observations"][:4])
    rolled = autoregressive_value(module, states, None, steps=0, num_samples=3, seed=0)
    sampled = module.value(states, steps_left=torch.zeros(4), num_samples=3)
    torch.testing.assert_close(rolled, sampled)


def test_maze_scores_are_against_d4rls_references():
    results = run_scores(mazes=("umaze",), episodes=5)
    assert [r.policy for r in results] == ["random", "planner", "planned once"]
    for r in results:
        assert r.score == pytest.approx(100 * (r.mean_return - 23.85) / (161.86 - 23.85))
    assert results[1].mean_return > results[0].mean_return


def test_command_prints_tables_and_writes_the_numbers(folder, capsys, monkeypatch):
    def tiny_loader(**options):
        return run_loader(**options, rows=500, batch_sizes=(8,), batches=5, budget=0.02)

    def tiny_mapped(**options):
        return mapped.run_mapped(**options, sizes=(500,), batch_size=8, together=2, budget=0.01)

    def tiny_step(**_):
        plan = Settings(TINY, batch_size=8, gradient_clip=1.0)
        yield run_step("tiny", plan, device=CPU, rows=300, q_rows=2, budget=0.01, profiled=True)

    def tiny_value(**_):
        return run_value("tiny", TINY, device=CPU, num_samples=2, longest=3, budget=0.01)

    def no_start(**_):
        yield StartResult("maze2d-large-v1", 1000, 2.0, 0.5, 9.0)

    monkeypatch.setattr(command, "run_starts", no_start)
    monkeypatch.setattr(command, "run_processor", lambda: [ProcessorResult("import torch", 2.0)])

    def tiny_priority(**options):
        return run_priority(**options, items=100, batch_size=8, repeats=2, budget=0.01)

    def tiny_speed(**_):
        return run_speed(maze="umaze", steps=300, budget=0.01)

    def tiny_scores(**_):
        return run_scores(mazes=("umaze",), episodes=1)

    def tiny_fit(**options):
        return run_fit(**options, plans=tiny_plan, steps=2, turns=2)

    def tiny_passes(**options):
        return run_passes(**options, plans=tiny_plan, size=64, budget=0.01)

    def tiny_calls(**options):
        results = list(
            run_calls(
                **options, rows=300, batch_size=8, width=4, lengths=(1, 4, None), steps=4, turns=2
            )
        )
        assert [r.steps_per_call for r in results] == [1, 4, None] * 2
        assert all(r.turns >= 2 and r.ratio > 0 for r in results)
        return results

    monkeypatch.setattr(command, "run_calls", tiny_calls)
    monkeypatch.setattr(command, "run_fit", tiny_fit)
    monkeypatch.setattr(command, "run_passes", tiny_passes)
    monkeypatch.setattr(command, "run_speed", tiny_speed)
    monkeypatch.setattr(command, "run_scores", tiny_scores)
    monkeypatch.setattr(command, "run_loader", tiny_loader)
    monkeypatch.setattr(command, "run_mapped", tiny_mapped)
    monkeypatch.setattr(command, "run_priority", tiny_priority)
    monkeypatch.setattr(command, "run_steps", tiny_step)
    monkeypatch.setattr(command, "run_values", tiny_value)

    def tiny_vae(**_):
        yield run_vae("maze2d", 4, **TINY_VAE)

    def tiny_latents(**options):
        tiny = {"batch": 4, "rows": 4, "candidates": (6,), "number": 5}
        return run_latents(**options, **tiny, repeats=1, width=8, diffusion_steps=20)

    monkeypatch.setattr(command, "run_vaes", tiny_vae)

    def tiny_pictures(**options):
        tiny = {"repeats": 1, "batch": 2, "rows": 2, "number": 3, "width": 8}
        return run_pictures(**options, **tiny, diffusion_steps=20)

    monkeypatch.setattr(command, "run_latents", tiny_latents)
    monkeypatch.setattr(command, "run_pictures", tiny_pictures)
    numbers = command.main(["--json", "numbers.json"])
    assert json.loads((folder / "numbers.json").read_text()) == json.loads(json.dumps(numbers))
    known = {"machine", *command.NAMES, "latents of pictures", "processor of a start"}
    known |= {"mapped rows"}
    assert numbers.keys() == known - ONLY_BY_NAME
    assert numbers["machine"]["threads"] == torch.get_num_threads() == 1
    printed = capsys.readouterr().out
    for word in (
        "Loader",
        "memory-mapped rows",
        "Prioritised sampling of 100",
        "steps a call",
        "training step",
        "time goes",
        "IQL's fit",
        "its relatives",
        "One value",
        "LDCQ's VAE step",
        "Pictures",
        "Collecting maze2d",
        "plans once",
    ):
        assert word in printed
    assert "EXTRAPOLATED from 3 steps" in printed
    assert "EXTRAPOLATED from 2 of 8 rows" in printed


def test_a_start_is_measured_in_the_shape_of_each_dataset(monkeypatch):
    starts = []

    def in_this_process(words, **_):
        """As a process of its own, without its imports."""
        monkeypatch.setattr("sys.argv", ["-c", *words[3:]])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(words[2], {})
        starts.append((words[3], len(list(Path(words[4]).glob("cache/*/entry.json")))))
        return SimpleNamespace(stdout=said.getvalue())

    monkeypatch.setattr("benchmarks.start.subprocess.run", in_this_process)
    results = list(run_starts(rows=3000))
    assert [r.name for r in results] == list(SHAPES) and all(r.rows == 3000 for r in results)
    assert all(min(r.first_seconds, r.later_seconds, r.import_seconds) > 0 for r in results)
    assert starts == [(name, 1) for name in SHAPES for _ in range(4)]  # one entry, made once


def test_processor_time_is_of_a_process_that_succeeded(tmp_path):
    assert processor_seconds(tmp_path, "-c", "open('made', 'w')") > 0
    assert (tmp_path / "made").is_file()
    with pytest.raises(RuntimeError, match="there is no verb 'nothing'"):
        processor_seconds(tmp_path, "-m", "lit_offrl", "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "at least 1"),
        (["--json", "nowhere/numbers.json"], "no folder"),
        (["--peer-python", "nowhere/python"], "there is no nowhere/python; make it by: python3"),
        (["lodaer"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys, folder):
    with pytest.raises(SystemExit) as error:
        command.main(options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_steps_of_pictures_are_timed_with_and_without_stored_features(monkeypatch):
    seen, plain = [], ImageVAEModule.features
    monkeypatch.setattr(
        ImageVAEModule, "features", lambda self, x: seen.append(len(x)) or plain(self, x)
    )
    sizes = {"repeats": 1, "batch": 2, "rows": 3, "number": 3, "width": 8}
    results = list(run_pictures(device=CPU, **sizes, diffusion_steps=20))
    assert [(r.what, r.batch) for r in results] == [("prior", 2), ("Q, 3", 3)]
    assert seen == [128] * 8 + [2] * 2 + [3] * 4  # the rows; then first frames, and next ones too
    assert all(r.ratio == r.frames_seconds / r.seconds > 0 for r in results)
    assert picture_table(results).row_count == 2


def test_latents_are_timed_by_the_stages_own_steps(monkeypatch):
    results = list(
        run_latents(
            device=CPU, repeats=1, batch=4, rows=4, candidates=(6,), number=5, width=8,
            diffusion_steps=20,
        )
    )  # fmt: skip
    assert [r.what for r in results] == ["prior", "Q, 6", "decision", "decision"]
    assert all(r.seconds > 0 for r in results)
    prior = results[0]
    assert prior.ratio == pytest.approx(prior.authors_seconds / prior.seconds)
    assert results[1].ratio is None  # the authors' numbers are of other sizes
    table = latent_table(results)
    assert table.row_count == 4 and list(table.columns[1].cells)[2:] == [
        *("n = 5, ddpm, all + 10 steps", "n = 5, dpm++, 10 steps")
    ]
    second, third = make_stages(CPU, width=8, diffusion_steps=20)
    assert third.stage2.prior.schedule.num_steps == second.prior.schedule.num_steps == 20
    assert (EXACT.sampling_steps, FEW.sampling_steps) == (None, 10)


def test_a_training_step_goes_through_few_files(folder):
    """Before the redesign 34 files and, with 8 blocks and 10 sampling steps, 354 switches."""
    result = run_trace(blocks=1, sampling_steps=2)
    assert result.files == len(result.by_file) <= 25
    assert result.calls == sum(result.by_file.values()) > result.switches
    assert {"datasets/sampler.py", "modules/dvf.py", "nets/perceiver.py"} <= set(result.by_file)
    assert result.switches <= 105


def test_load_of_a_server_counts_actions_that_are_not_the_clients_own():
    torch.manual_seed(0)
    bounds = [-1.0] * 2, [1.0] * 2
    random = np.random.default_rng(0)
    for module in (
        BCModule(3, 2, *bounds, hidden=[8]),
        DecisionTransformerModule(3, 2, *bounds, context=3, target_return=5.0),
    ):
        module.eval()
        clients = []
        for _ in range(2):
            policy, client = module.policy(), _Client([], [], [], [])
            for step in range(4):
                client.observations.append(random.normal(size=3).astype(np.float32))
                client.rewards.append(float(random.normal()))
                if step > 0 and hasattr(policy, "earn"):
                    policy.earn(np.array([client.rewards[-1]]))
                client.actions.append(policy.act(client.observations[-1][None])[0].tolist())
            clients.append(client)
        assert _wrong(module, clients) == 0
        one, other = (client.actions for client in clients)
        one[1], other[1] = other[1], one[1]
        assert _wrong(module, clients) == 2


@pytest.mark.slow
def test_a_served_policy_loses_and_mixes_up_nothing():
    """DQL goes BC's way, but for its noise, which leaves nothing to compare."""
    results = list(run_serving(seconds=1.0, clients=(8,), policies=("BC", "Decision Transformer")))
    found = [(r.policy, r.together) for r in results]
    assert found == [("BC", True), ("BC", False), ("Decision Transformer", False)]
    for r in results:
        assert r.requests >= 8 and r.lost == 0 and r.wrong == 0


@pytest.mark.slow
def test_exported_policies_are_kept_for_a_check_elsewhere(tmp_path):
    (result,) = run_exported(policies=["BC"], steps=3, budget=0.0, keep=tmp_path)
    assert result.turns == 3 and result.ratio > 0 and result.apart < 1e-6
    assert difference(tmp_path / "BC.onnx") == result.apart
    shown = dict(np.load(tmp_path / "BC.npz"))
    np.savez(tmp_path / "BC.npz", **{**shown, "actions": shown["actions"] + 0.5})
    assert difference(tmp_path / "BC.onnx") == pytest.approx(0.5, abs=1e-5)
