"""Which rows a datamodule hands out, to whom, in which order."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_offrl import modules
from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datamodules import OfflineDataModule, PyBulletDataModule
from lit_offrl.datamodules.loaders import FixedLoader
from lit_offrl.datasets.labels import save_labels
from lit_offrl.datasets.priorities import Linear, Priorities, PrioritizedOrder
from lit_offrl.datasets.rows import Spans
from lit_offrl.datasets.sampler import RowOrder, TrainLoader
from lit_offrl.datasets.views import (
    AdvantageLabelled,
    BoundView,
    FutureStates,
    Snippets,
    Transitions,
)

CLASSES = [OfflineDataModule, PyBulletDataModule]


@pytest.fixture(params=CLASSES)
def build(request, d4rl_file):
    return lambda **options: request.param(str(d4rl_file), **options)


class Identity(BoundView):
    """A bound view whose batches are the row numbers themselves."""

    num_uniforms = 1
    device = torch.device("cpu")

    def __init__(self, count):
        self.spans = Spans.first(count)

    def batch(self, index, uniforms):
        assert len(uniforms) == len(index)
        return index


def test_the_spec_is_known_before_anything_is_read(build):
    data = build()
    assert data.train_set is None
    assert (data.spec.observation_dim, data.spec.action_dim) == (3, 1)
    assert data.spec.action_low == (-2.0,) and data.spec.env_id == "Pendulum-v1"
    with pytest.raises(ConfigError, match="call setup"):
        data.train_column("observations")


def test_a_row_without_a_reward_is_refused_where_each_counts(d4rl_file, tmp_path):
    known = np.ones(h5py.File(d4rl_file)["rewards"].shape, np.bool_)
    for unknown in ([], [7, 9]):
        known[unknown] = False
        path = tmp_path / f"{len(unknown)}.hdf5"
        shutil.copy(d4rl_file, path)
        with h5py.File(path, "a") as file:
            file["reward_mask"] = known
        for kind in vars(modules).values():
            if not isinstance(kind, type) or kind is modules.OfflineModule:
                continue
            data = PyBulletDataModule(str(path), view=Transitions())
            attributes = {"required_columns": ("actions", "rewards")}
            module = type(kind.__name__, (), attributes | {"learns_rewards": kind.learns_rewards})()
            data.trainer = SimpleNamespace(lightning_module=module, world_size=1)
            if unknown and kind is not modules.DVFModule:
                line = f"row 7 has no reward .*, and {kind.__name__} needs that of every row"
                with pytest.raises(DatasetError, match=line):
                    data.setup("fit")
            else:
                data.setup("fit")


def test_whole_episodes_are_held_out_by_the_seed(build):
    def held(**options):
        data = build(**options)
        data.setup("fit")
        return data

    data = held(validation_fraction=0.1)
    assert (len(data.train_set.episodes), len(data.held_out.episodes)) == (18, 2)
    assert data.train_column("observations").shape == (18 * 30, 3)
    rows = np.concatenate([d.columns["observations"] for d in (data.train_set, data.held_out)])
    assert len(np.unique(rows, axis=0)) == 600  # each row on one side
    same, other = held(validation_fraction=0.1), held(validation_fraction=0.1, seed=1)
    first = data.held_out.columns["observations"]
    np.testing.assert_array_equal(first, same.held_out.columns["observations"])
    assert not np.array_equal(first, other.held_out.columns["observations"])
    assert len(held(validation_fraction=0.001).held_out.episodes) == 1  # at least one
    assert held(validation_fraction=0).val_dataloader() == []
    with pytest.raises(ConfigError, match="leaves none to train on"):
        held(validation_fraction=0.99)


@pytest.mark.parametrize("view", [None, Transitions(), FutureStates(gamma=0.9, history=2)])
def test_batches_are_of_the_view(build, view):
    data = build(view=view, batch_size=32)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.observations.shape == (32, 3)
    assert hasattr(batch, "future_observations") == isinstance(view, FutureStates)
    again = next(iter(data.train_dataloader()))
    assert all(a is None or torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    held = list(data.val_dataloader())
    assert sum(len(b.observations) for b in held) == len(data._bind("held_out").rows)


@pytest.mark.parametrize(("first", "left"), [(0, 5), (3, 2), (5, 5), (12, 3)])
def test_training_goes_on_where_the_run_stands_when_the_first_batch_is_taken(first, left):
    done = 0
    order = RowOrder(50, 10, seed=3)
    loader = TrainLoader(Identity(50), order, 5, lambda: done)
    batches = iter(loader)
    done = first  # known only after the iterator was made, as in Lightning
    found = [batch.tolist() for batch in batches]
    assert found == [order.rows(step).tolist() for step in range(first, first + left)]


class Threes:
    """Takes three batches at a time, as far as an epoch goes."""

    alone = False

    def take(self, most):
        self.count = min(3, most)
        return self.count

    def split(self, rows):
        return [part.tensor_split(self.count) for part in rows if part is not None]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("view", [Transitions(), FutureStates(gamma=0.9, history=2)])
def test_batches_that_are_gathered_at_once_are_the_same(build, view, world):
    data = build(view=view)
    data.setup("fit")
    bound = data.train_view()
    order = RowOrder(bound.spans, 13, 0, rank=world - 1, world_size=world)
    single = list(TrainLoader(bound, order, 8, lambda: 5, same=True, limit=10))
    found = []
    for parts in TrainLoader(bound, order, 8, lambda: 5, 10, True, Threes()):
        found += zip(*parts, strict=True)
    assert len(single) == len(found) == 5
    for one, other in zip(single, found, strict=True):
        assert all(map(torch.equal, [part for part in one if part is not None], other))


@pytest.mark.parametrize(("rows", "world"), [(23, 1), (23, 2), (64, 3), (9, 4)])
def test_each_row_is_evaluated_once_over_all_processes(rows, world):
    uniforms = torch.rand(rows, 1, dtype=torch.float64)
    loaders = [FixedLoader(Identity(rows), 5, uniforms, rank, world) for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1  # none waits for another
    batches = [batch for loader in loaders for batch in loader]
    assert torch.cat(batches).tolist() == list(range(rows))
    assert max(len(batch) for batch in batches) <= 5


def test_a_short_validation_is_spread_over_all_rows():
    loader = FixedLoader(Identity(1000), 10, torch.zeros(1000, 1), max_batches=2)
    assert len(loader) == 2 and torch.cat(list(loader)).tolist() == list(range(0, 1000, 50))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"validation_batches": 0}, "validation_batches is 0"),
    ],
)
def test_numbers_that_cannot_be(build, options, said):
    with pytest.raises(ConfigError, match=said):
        build(**options)


def test_columns_that_the_module_needs_must_be_there(lit, d4rl_file, capsys):
    with h5py.File(d4rl_file) as old, h5py.File("unpaid.hdf5", "w") as new:
        for column in set(old) - {"rewards"}:
            old.copy(column, new)
    data = ("--data.init_args.dataset", "unpaid.hdf5")
    small = "width 16 blocks 1 latents 4 history 1 diffusion_steps 4 sampling_steps 1".split()
    words = [f"--model.init_args.{n}={v}" for n, v in zip(small[::2], small[1::2], strict=True)]
    assert lit(*data, *words, module="DVFModule") == 2
    assert "rewards" in capsys.readouterr().err
    assert lit(*data, *words, "--model.init_args.train=occupancy", module="DVFModule") == 0
    with pytest.raises(DatasetError):
        PyBulletDataModule("missing.hdf5")


class Prioritised(LightningModule):
    """Trains nothing: sets each row's priority, and notes what it is given."""

    priorities = Priorities(beta=Linear(0.5, 1.0, steps=10))

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def view(self):
        return Snippets(3)

    def training_step(self, batch, batch_idx):
        self.seen.append((batch.rows, batch.weights))
        priorities = (batch.rows % 7 + 0.1 * self.global_step).float()
        self.trainer.datamodule.row_order.update(batch.rows, priorities)
        return self.weight * batch.weights.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, build, folder, steps, checkpoint=None, **options):
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        limit_val_batches=0, **options,
    )  # fmt: skip
    trainer.fit(module, build(batch_size=100), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module.seen


def test_a_module_draws_by_the_priorities_that_it_sets_and_resumes_exactly(build, folder):
    """5 batches an epoch, 3 epochs: no batch is made before the update of the one before."""
    whole = fit(Prioritised(), build, folder, 13)
    assert any((weights != 1).any() for _, weights in whole)
    fit(Prioritised(), build, folder, 7)
    resumed = fit(Prioritised(), build, folder, 13, folder / "7.ckpt")
    assert len(resumed) == 6
    for one, other in zip(resumed, whole[7:], strict=True):
        assert all(map(torch.equal, one, other))
    # Batches are what the order draws after the updates of all steps before.
    data = build(batch_size=100, view=Snippets(3))
    data.setup("fit")
    order = PrioritizedOrder(data.train_view().spans, 100, 0, settings=Prioritised.priorities)
    for step, (rows, weights) in enumerate(whole):
        assert all(map(torch.equal, (rows, weights), order.draw(step)))
        order.update(rows, (rows % 7 + 0.1 * step).float())


def test_exponents_of_priorities_change_by_optimiser_steps(build, folder):
    seen = fit(Prioritised(), build, folder, 6, accumulate_grad_batches=3)
    data = build(batch_size=100, view=Snippets(3))
    data.setup("fit")
    settings = Priorities(beta=Linear(0.5, 1.0, steps=30, every=3))
    order = PrioritizedOrder(data.train_view().spans, 100, 0, settings=settings)
    assert len(seen) == 18
    for batch, (rows, weights) in enumerate(seen):
        assert all(map(torch.equal, (rows, weights), order.draw(batch)))
        order.update(rows, (rows % 7 + 0.1 * (batch // 3)).float())


def test_views_without_room_for_weights_cannot_be_drawn_by_priority(build):
    data = build(view=Transitions())
    data.setup("fit")
    order = PrioritizedOrder(data.train_view().spans, 8, seed=0)
    with pytest.raises(ConfigError, match="TransitionBatch has no field for importance weights"):
        next(iter(TrainLoader(data.train_view(), order, 5, lambda: 0)))


def test_labels_of_the_whole_dataset_reach_the_held_out_rows_too(build, tmp_path):
    whole = build().source.read()
    path = tmp_path / "labels.npz"
    save_labels(path, whole.columns["rewards"] - 2, whole, "critic")
    data = build(view=AdvantageLabelled(str(path)), validation_fraction=0.3)
    data.setup("fit")
    for batch in (next(iter(data.train_dataloader())), *data.val_dataloader()):
        assert torch.equal(batch.advantages, batch.rewards - 2)
