"""Lightning's face on a dataset: a source of rows, a view of them, and who gets which."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.quiet import say
from lit_offrl.common.randomness import ShardedGenerator, mix
from lit_offrl.datamodules.loaders import FixedLoader, TrainLoader
from lit_offrl.datasets.bounds import outside_bounds, settle_bounds
from lit_offrl.datasets.catalog import default_cache_dir, resolve
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.policies import episodes_of_policies
from lit_offrl.datasets.priorities import Priorities, PrioritizedOrder
from lit_offrl.datasets.rows import Spans
from lit_offrl.datasets.sampler import Order, RowOrder
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.views import BoundView, Transitions, View

_SPLIT, _HELD_OUT = 0x5B17, 0x4E1D  # keep the streams of one seed apart
_ROOM = 0.5  # of the device's free memory that data may take: the rest is for training


class OfflineDataModule(LightningDataModule):
    """Any dataset, by name or file, seen through a view.

    ``spec`` is known at once, from the catalogue or the file's header, so that the command line can
    give a module its dimensions; the rows are read in ``setup``.

    Args:
        dataset: a name of ``lit-offrl datasets list``, or a path.
        view: how rows become batches; by default as the module asks for, else one-step transitions.
        batch_size: B, rows a process takes in a step.
        validation_fraction: share of the episodes that is held out, at least one if above 0.
        validation_batches: so many batches a process in a validation at most, of rows spread over
            all held-out episodes.
        data_dir: where downloaded datasets are; ``$LIT_OFFRL_DATA`` or ``~/.lit_offrl/datasets``
            by default.
        env_id: the environment's gymnasium id, where the file is silent or wrong.
        format: the file's layout: ``d4rl``, ``pybullet`` (rewards shifted by one row), or ``auto``,
            which takes what the file says, else guesses; see ``read_hdf5``.
        action_low: lower bound of the actions, a number for all dimensions or one each; that of the
            file, else of the environment's action space, else the data's least action by default.
        action_high: the upper one, likewise.
        device: ``auto`` keeps data that fit on the training device, ``cpu`` in main memory.
        seed: of the order of rows and of the choice of held-out episodes.
        hold_out_policies: values of the column ``policy`` whose episodes are in no training and no
            validation batch, so that they can be evaluated as policies never seen.

    Raises:
        DatasetError: there is no such dataset, or it cannot be used.
        ConfigError: a number that cannot be.
    """

    def __init__(
        self,
        dataset: str,
        view: View | None = None,
        *,
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        validation_batches: int | None = 20,
        data_dir: str | None = None,
        env_id: str | None = None,
        format: Format = "auto",
        action_low: float | list[float] | None = None,
        action_high: float | list[float] | None = None,
        device: Literal["auto", "cpu"] = "auto",
        seed: int = 0,
        hold_out_policies: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: give at least 1.")
        if not 0 <= validation_fraction < 1:
            raise ConfigError(
                f"validation_fraction is {validation_fraction}: give a share in [0, 1)."
            )
        if validation_batches is not None and validation_batches < 1:
            raise ConfigError(
                f"validation_batches is {validation_batches}: give at least 1, or null for all."
            )
        self.view = view
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.validation_batches = validation_batches
        self.env_id = env_id
        self.format = format
        self.action_low, self.action_high = action_low, action_high
        self.device = device
        self.seed = seed
        self.hold_out_policies = tuple(float(value) for value in hold_out_policies)
        self.data_dir = data_dir
        self._opened: OfflineDataset | None = None
        self.spec: DatasetSpec = settle_bounds(
            self._open(dataset), self._actions, action_low, action_high
        )
        self.dataset: OfflineDataset | None = None
        """All episodes, held out or not."""
        self.row_order: Order | None = None
        self._order_state: dict[str, Any] = {}
        self._episodes: dict[str, np.ndarray] = {}
        self._whole: tuple[OfflineDataset, BoundView] | None = None
        self._bound: dict[str, BoundView] = {}

    # ---- what Lightning calls ------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read the rows, check that the module can use them, and hold episodes out.

        What was done to the rows, and what is odd about their values, is said.
        """
        if self.dataset is not None:
            return
        module = self._module()
        require = getattr(module, "required_columns", ())
        missing = [name for name in require if name not in self.spec.columns]
        if missing and self.spec.columns:  # a catalogue entry does not know them before it is read
            raise DatasetError(
                f"{self.spec.origin}: has no column '{missing[0]}', which {type(module).__name__} "
                f"needs. {module.missing_columns_advice}"
            )
        if self.view is None:
            own: Callable[[], View] = getattr(module, "view", Transitions)
            self.view = own()
        dataset = self.view.prepare(self._rows(require))
        self._episodes = self._split(dataset)
        if self.hold_out_policies:
            values = ", ".join(f"{value:g}" for value in self.hold_out_policies)
            said = (*dataset.spec.handling, f"episodes of the policies {values} were held out")
            dataset = dataset.with_spec(replace(dataset.spec, handling=said))
        self.spec = dataset.spec
        self.dataset = dataset
        outside = outside_bounds(dataset.columns, self.spec)
        for sentence in (*self.spec.handling, *self.spec.notices, *([outside] if outside else [])):
            say(f"{self.spec.name}: {sentence}")

    def train_dataloader(self) -> TrainLoader:
        """Batches in an order that is a pure function of (seed, step, rank, world size).

        Where the module has ``priorities``, rows are drawn by those, which it updates through
        ``datamodule.row_order.update``.
        """
        view = self.train_view()
        rank, world_size = self._place()
        place = (view.spans, self.batch_size, self.seed, rank, world_size, view.device)
        priorities: Priorities | None = getattr(self._module(), "priorities", None)
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        order: Order = RowOrder(*place)
        if priorities is not None:
            order = PrioritizedOrder(*place, priorities, accumulated)
        order.load_state_dict(self._order_state)
        self.row_order, self._order_state = order, {}
        # Lightning steps at an epoch's end even where gradients are still to be accumulated: so an
        # epoch has a whole number of steps.
        steps = max(1, len(view.spans) // (self.batch_size * world_size * accumulated))
        length = steps * accumulated
        limit, same = self._limit(length)
        if same and priorities is not None:
            raise ConfigError(
                "trainer.overfit_batches cannot be used where rows are drawn by priority: set "
                "model.init_args.prioritized to false."
            )
        return TrainLoader(view, order, length, self._batches_done, limit, same)

    def val_dataloader(self) -> FixedLoader | list[Any]:
        """Held-out rows, the same each time; none if nothing is held out."""
        return self._fixed(self.validation_batches) if "held_out" in self._episodes else []

    def test_dataloader(self) -> FixedLoader:
        """All held-out rows; all rows if nothing is held out."""
        return self._fixed(None)

    def predict_dataloader(self) -> FixedLoader:
        """All held-out rows; all rows if nothing is held out."""
        return self._fixed(None)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch, unless its rows live on the training device already."""
        if batch.observations.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """What the order of rows needs to go on, beside the step's number."""
        return {} if self.row_order is None else self.row_order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the order's state until there is an order."""
        self._order_state = state_dict

    # ---- what modules ask for ------------------------------------------------------------------

    @property
    def train_set(self) -> OfflineDataset | None:
        """The training episodes as a dataset of their own, copied; None before setup."""
        return self._copy("train")

    @property
    def held_out(self) -> OfflineDataset | None:
        """The held-out episodes as a dataset of their own, copied; None if nothing is held out."""
        return self._copy("held_out")

    @property
    def recorded(self) -> OfflineDataset | None:
        """All episodes with the rewards that the environment paid; None before setup."""
        return self.dataset

    def train_observations(self) -> np.ndarray:
        """Observations (N, o) of the training episodes, for a normaliser's statistics."""
        return self._train_column("observations")

    def train_rewards(self) -> np.ndarray:
        """Rewards of the labelled rows (n,) of the training episodes."""
        dataset = self._ready()
        dataset.column("rewards")
        rewards = self._train_column("rewards")
        if "reward_mask" not in dataset.columns:
            return rewards
        return rewards[self._train_column("reward_mask")]

    def train_policies(self) -> np.ndarray:
        """Column ``policy`` (N,) of the training episodes: which policy took each step."""
        self._ready().column("policy")
        return self._train_column("policy")

    def train_view(self) -> BoundView:
        """The training episodes through the view, for what a module computes once for all rows."""
        return self._bind("train")

    def whole_view(self) -> BoundView:
        """All episodes, held out or not, through the view, for what one file keeps for all runs."""
        return self._bind_whole()

    @property
    def cache_dir(self) -> Path:
        """The folder for what is computed once a dataset."""
        return default_cache_dir(self.data_dir)

    # ---- inside --------------------------------------------------------------------------------

    def _module(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    def _open(self, dataset: str) -> DatasetSpec:
        """Find the dataset and return its spec, without its rows."""
        self._source = resolve(dataset, self.data_dir)
        return self._source.header(format=self.format, env_id=self.env_id)

    def _actions(self) -> np.ndarray:
        """Read the rows before ``setup`` does, as the range of their actions has to be known."""
        self._opened = self._read(())
        return self._opened.column("actions")

    def _rows(self, require: Sequence[str]) -> OfflineDataset:
        """Return the rows with the bounds that are settled."""
        dataset = self._read(require) if self._opened is None else self._opened
        self._opened = None
        said = dict.fromkeys((*dataset.spec.notices, *self.spec.notices))  # each once
        spec = replace(
            dataset.spec,
            action_low=self.spec.action_low,
            action_high=self.spec.action_high,
            notices=tuple(said),
        )
        return dataset.with_spec(spec)

    def _read(self, require: Sequence[str]) -> OfflineDataset:
        """Return the rows, with at least these columns."""
        return self._source.read(require=require, format=self.format, env_id=self.env_id)

    def _split(self, dataset: OfflineDataset) -> dict[str, np.ndarray]:
        """Return the numbers of the training episodes and, if there are any, the held-out ones.

        Those of policies held out are in neither.
        """
        kept = np.arange(len(dataset.episodes))
        if self.hold_out_policies:
            kept = kept[~episodes_of_policies(dataset, self.hold_out_policies)]
        episodes = len(kept)
        if episodes == 0:
            raise ConfigError(
                f"{self.spec.origin}: hold_out_policies names every policy of the data, which "
                "leaves none to train on: name fewer."
            )
        count = math.ceil(self.validation_fraction * episodes - 1e-9)
        if count == 0:
            return {"train": kept}
        if count >= episodes:
            raise ConfigError(
                f"{self.spec.origin}: holding {count} of {episodes} episodes out leaves none to "
                "train on: set validation_fraction to 0 or take more episodes."
            )
        order = np.random.default_rng(mix(self.seed, _SPLIT)).permutation(episodes)
        return {"train": kept[np.sort(order[count:])], "held_out": kept[np.sort(order[:count])]}

    def _takes_all(self) -> bool:
        """Whether every episode is a training episode."""
        return len(self._episodes["train"]) == len(self._ready().episodes)

    def _ready(self) -> OfflineDataset:
        if self.dataset is None:
            raise ConfigError("The dataset is not read yet: call setup('fit') first.")
        return self.dataset

    def _copy(self, which: str) -> OfflineDataset | None:
        if self.dataset is None or which not in self._episodes:
            return None
        if self._takes_all():
            return self.dataset
        return self.dataset.take_episodes(self._episodes[which])

    def _train_column(self, name: str) -> np.ndarray:
        dataset = self._ready()
        if self._takes_all():
            return dataset.columns[name]
        chosen = np.zeros(len(dataset.episodes), dtype=np.bool_)
        chosen[self._episodes["train"]] = True
        return dataset.columns[name][np.repeat(chosen, dataset.episode_lengths)]

    def _bind_whole(self) -> BoundView:
        """Return a view of all episodes, of the data that the module has stand in for these."""
        dataset = self._ready()
        stand_in = getattr(self._module(), "stand_in", None)
        seen = dataset if stand_in is None else stand_in(dataset)
        if self._whole is None or self._whole[0] is not seen:
            assert self.view is not None  # setup has put one in
            self._whole = seen, self.view.bind(seen, self._device_for(seen))
            self._bound = {}
        return self._whole[1]

    def _bind(self, which: Literal["train", "held_out"]) -> BoundView:
        """Return a view of some episodes; both share the columns, which are bound once."""
        dataset, whole = self._ready(), self._bind_whole()
        if which not in self._episodes:
            which = "train"
        if which not in self._bound:
            bound = copy.copy(whole)
            if not self._takes_all():
                bounds = torch.from_numpy(dataset.episodes[self._episodes[which]])
                bound.spans = bound.spans.within(Spans(bounds[:, 0], bounds[:, 1]))
            if len(bound.spans) == 0:
                raise DatasetError(
                    f"{self.spec.origin}: the {which.replace('_', ' ')} episodes have no row that "
                    "the view can use: change validation_fraction or the seed."
                )
            self._bound[which] = bound
        return self._bound[which]

    def _fixed(self, max_batches: int | None) -> FixedLoader:
        view = self._bind("held_out")
        noise = ShardedGenerator(self.seed, _HELD_OUT)
        uniforms = noise.uniform((len(view.spans), view.num_uniforms), torch.float64)
        uniforms = uniforms.to(view.device)
        return FixedLoader(view, self.batch_size, uniforms, *self._place(), max_batches)

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _limit(self, length: int) -> tuple[int, bool]:
        """Return how many of an epoch's batches are trained on, and whether always on the same.

        Raises:
            ConfigError: they make no whole number of optimiser steps.
        """
        trainer: Any = self.trainer  # sets attributes that type checkers do not see
        if trainer is None or trainer.fast_dev_run:
            return length, False
        same = trainer.overfit_batches > 0
        name = "overfit_batches" if same else "limit_train_batches"
        most, accumulated = trainer.limit_train_batches, trainer.accumulate_grad_batches
        limit = min(length, most) if isinstance(most, int) else int(length * most)
        if limit % accumulated:
            raise ConfigError(
                f"trainer.{name} takes {limit} batches of an epoch, and trainer."
                f"accumulate_grad_batches is {accumulated}: give a multiple of that."
            )
        return max(1, limit), same

    def _batches_done(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def _device_for(self, dataset: OfflineDataset) -> torch.device:
        cpu = torch.device("cpu")
        if self.trainer is None or self.device == "cpu":
            return cpu
        device = self.trainer.strategy.root_device
        if device.type != "cuda":
            return cpu
        free, _ = torch.cuda.mem_get_info(device)
        size = sum(column.nbytes for column in dataset.columns.values())
        return device if size <= _ROOM * free else cpu
