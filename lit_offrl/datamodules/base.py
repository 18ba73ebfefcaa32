"""A dataset as Lightning's data module: its rows, a view of them, and which process gets which."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.quiet import say
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.ranges import require_in
from lit_offrl.datamodules.loaders import FixedLoader, batches_of_epoch
from lit_offrl.datasets.bounds import outside_bounds, settle_bounds
from lit_offrl.datasets.catalog import Reading, default_cache_dir, resolve
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.priorities import Priorities, PrioritizedOrder
from lit_offrl.datasets.replay import Mixture
from lit_offrl.datasets.rows import Spans
from lit_offrl.datasets.sampler import Order, RowOrder, TrainLoader
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.sources import Source
from lit_offrl.datasets.split import Split, split_episodes
from lit_offrl.datasets.views import BoundView, Transitions, View

_HELD_OUT = 0x4E1D  # keeps the streams of one seed apart
_MEMORY_FRACTION = 0.5  # of the device's free memory: the rest is for training


class OfflineDataModule(LightningDataModule):
    """Any dataset, by name or file, seen through a view.

    ``spec`` is known at once, from the catalogue or the file's header, so that the command line can
    give a module its dimensions; the rows are read in ``setup``.

    Args:
        dataset: A name that ``lit-offrl datasets list`` shows, or the path of a file.
        view: How rows become batches. By default the method chooses; without one, batches are
            one-step transitions.
        batch_size: Number of rows, at least 1, that each process takes in a step.
        validation_fraction: Fraction of the episodes, in [0, 1), that is held out to validate on;
            above 0 it is at least one episode.
        validation_batches: Largest number of batches, at least 1, that each process validates on;
            their rows are spread over all held-out episodes. null takes all of these rows.
        data_dir: Folder of downloaded datasets; by default ``$LIT_OFFRL_DATA`` or
            ``~/.lit_offrl/datasets``.
        env_id: The gymnasium id of the environment, where the file does not name it or is wrong.
        format: Layout of the file: ``d4rl``; ``pybullet``, where rewards are shifted by one row; or
            ``auto``, which takes what the file says and guesses where it says nothing.
        action_low: Lower bound of the actions in the environment's units, as one number or one for
            each dimension. By default it is that of the file, else of the environment's action
            space, else the smallest action in the data.
        action_high: Upper bound of the actions, in the same form and with the same defaults.
        device: Where the data are kept while training: ``auto`` takes the training device if half
            of its free memory holds them, ``cpu`` the main memory.
        seed: Seed of the order of rows and of the choice of held-out episodes, at least 0.
        hold_out_policies: Values of the column ``policy`` whose episodes are in no training and no
            validation batch, so that these policies can be evaluated as unseen ones.

    Raises:
        DatasetError: There is no such dataset, or it cannot be used.
        ConfigError: A number is out of its range, or an option does not go with the dataset.
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
        require_in("[1, inf)", batch_size=batch_size, validation_batches=validation_batches)
        require_in("[0, 1)", validation_fraction=validation_fraction)
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
        self.cache_dir: Path = default_cache_dir(data_dir)
        """The folder for what is computed once for a dataset."""
        self.source: Source = self._find(dataset)
        self.recorded: OfflineDataset | None = None
        """All episodes with the rewards of the environment; None before they are read."""
        self._rows_for_bounds: OfflineDataset | None = None
        self.spec: DatasetSpec = settle_bounds(
            self.source.header(), self._read_actions, action_low, action_high
        )
        self.dataset: OfflineDataset | None = None
        """All episodes, held out or not."""
        self.mixture: Mixture | None = None
        """What adds rows of the run's own steps to each batch, where a command has given one."""
        self.row_order: Order | None = None
        self._order_state: dict[str, Any] = {}
        self._split: Split | None = None
        self._whole: tuple[OfflineDataset, BoundView] | None = None
        self._bound: dict[str, BoundView] = {}

    # ---- reading -------------------------------------------------------------------------------

    def _find(self, dataset: str) -> Source:
        """Return where the dataset comes from."""
        return resolve(dataset, self.data_dir, Reading(self.format, self.env_id))

    def _read(self, require: Sequence[str]) -> OfflineDataset:
        """Return the rows, with at least these columns."""
        return self.source.read(require=require)

    def _read_actions(self) -> np.ndarray:
        """Read the rows before ``setup`` does, as the range of their actions has to be known."""
        self._rows_for_bounds = self._read(())
        return self._rows_for_bounds.column("actions")

    def setup(self, stage: str) -> None:
        """Read the rows, check that the module can use them, and hold episodes out.

        How the rows were changed on reading, and what is unusual about their values, is printed.

        Raises:
            DatasetError: The rows cannot be read, or lack a column or a reward that the module
                needs.
            ConfigError: No episode would be left to train on.
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
            default_view: Callable[[], View] = getattr(module, "view", Transitions)
            self.view = default_view()
        rows, known = self._rows_for_bounds or self._read(require), self.spec
        notices = tuple(dict.fromkeys((*rows.spec.notices, *known.notices)))  # each once
        low, high = known.action_low, known.action_high
        spec = replace(rows.spec, notices=notices, action_low=low, action_high=high)
        dataset = self.view.prepare(rows.with_spec(spec))
        if "rewards" in require and not getattr(module, "learns_rewards", True):
            _require_rewards(dataset, type(module).__name__)
        self._rows_for_bounds = None
        self._split = split_episodes(
            dataset, self.validation_fraction, self.seed, self.hold_out_policies
        )
        if self.hold_out_policies:
            values = ", ".join(f"{value:g}" for value in self.hold_out_policies)
            handling = (*dataset.spec.handling, f"episodes of the policies {values} were held out")
            dataset = dataset.with_spec(replace(dataset.spec, handling=handling))
        self.spec = dataset.spec
        self.dataset, self.recorded = dataset, self.recorded or dataset
        outside = outside_bounds(dataset.columns, self.spec)
        for sentence in (*self.spec.handling, *self.spec.notices, *([outside] if outside else [])):
            say(f"{self.spec.name}: {sentence}")

    # ---- what Lightning calls ------------------------------------------------------------------

    def train_dataloader(self) -> TrainLoader:
        """Batches in an order that is a pure function of (seed, step, rank, world size).

        Where the module has ``priorities``, rows are drawn by those, which it updates through
        ``datamodule.row_order.update``.

        Raises:
            ConfigError: The limits of the Trainer do not go together, or with priorities.
        """
        view = self.train_view()
        rank, world_size = self._place()
        place = (view.spans, self.batch_size, self.seed, rank, world_size, view.device)
        priorities: Priorities | None = getattr(self._module(), "priorities", None)
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        order: Order = RowOrder(*place)
        if priorities is not None:
            order = PrioritizedOrder(*place, settings=priorities, accumulated=accumulated)
        if self.mixture is not None:
            assert self.view is not None  # setup has chosen one
            mixed = view, self.view, self.spec, self.batch_size, self.seed
            view, order = self.mixture.join(*mixed)
        order.load_state_dict(self._order_state)
        self.row_order, self._order_state = order, {}
        # Lightning steps at an epoch's end even where gradients are still to be accumulated: so an
        # epoch has a whole number of steps.
        steps = max(1, len(view.spans) // (self.batch_size * world_size * accumulated))
        length = steps * accumulated
        limit, same = batches_of_epoch(self.trainer, length)
        if same and priorities is not None:
            raise ConfigError(
                "trainer.overfit_batches cannot be used where rows are drawn by priority: set "
                "model.init_args.prioritized to false."
            )
        begin_calls = getattr(self._module(), "begin_calls", None)
        # rows that are drawn by priority depend on the steps before: a batch at a time
        calls = begin_calls() if begin_calls is not None and priorities is None else None
        return TrainLoader(view, order, length, self._batches_done, limit, same, calls)

    def val_dataloader(self) -> FixedLoader | list[Any]:
        """Held-out rows, the same each time; none if nothing is held out."""
        if self._split is None or self._split.held_out is None:
            return []
        return self._fixed(self.validation_batches)

    def test_dataloader(self) -> FixedLoader:
        """All held-out rows; all rows if nothing is held out."""
        return self._fixed(None)

    predict_dataloader = test_dataloader

    def state_dict(self) -> dict[str, Any]:
        """What the order of rows needs to continue, beside the step's number."""
        return {} if self.row_order is None else self.row_order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the order's state until there is an order."""
        self._order_state = state_dict

    # ---- what modules ask for ------------------------------------------------------------------

    @property
    def train_set(self) -> OfflineDataset | None:
        """The training episodes as a dataset of their own, copied; None before setup."""
        return None if self._split is None else self._copy(self._split.train)

    @property
    def held_out(self) -> OfflineDataset | None:
        """The held-out episodes as a dataset of their own, copied; None if nothing is held out."""
        if self._split is None or self._split.held_out is None:
            return None
        return self._copy(self._split.held_out)

    def train_column(self, name: str) -> np.ndarray:
        """A column (N,) or (N, d) of the training episodes' rows, of rewards only the labelled."""
        dataset, split = self._require_rows()
        column, rows = dataset.column(name), np.ones(len(dataset), dtype=np.bool_)
        if not split.is_whole:
            chosen = np.zeros(len(dataset.episodes), dtype=np.bool_)
            chosen[split.train] = True
            rows = np.repeat(chosen, dataset.episode_lengths)
        if name == "rewards" and "reward_mask" in dataset.columns:
            rows = rows & dataset.columns["reward_mask"]
        return column if rows.all() else column[rows]

    def environment_rewards(self) -> Callable[[np.ndarray], np.ndarray]:
        """What makes the environment's rewards (n,) those of the data, which are trained on."""
        return lambda rewards: rewards

    def train_view(self) -> BoundView:
        """The training episodes through the view, for what a module computes once for all rows."""
        return self._bind("train")

    def whole_view(self) -> BoundView:
        """All episodes through the view, of the data that the module makes batches of."""
        dataset, _ = self._require_rows()
        replace_columns = getattr(self._module(), "batched_dataset", None)
        viewed = dataset if replace_columns is None else replace_columns(dataset)
        if self._whole is None or self._whole[0] is not viewed:
            assert self.view is not None  # setup has chosen one
            self._whole = viewed, self.view.bind(viewed, self._device_for(viewed))
            self._bound = {}
        return self._whole[1]

    # ---- inside --------------------------------------------------------------------------------

    def _module(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    def _require_rows(self) -> tuple[OfflineDataset, Split]:
        if self.dataset is None or self._split is None:
            raise ConfigError("The dataset is not read yet: call setup('fit') first.")
        return self.dataset, self._split

    def _copy(self, episodes: np.ndarray) -> OfflineDataset:
        dataset, split = self._require_rows()
        return dataset if split.is_whole else dataset.take_episodes(episodes)

    def _bind(self, which: Literal["train", "held_out"]) -> BoundView:
        """Return a view of some episodes; both share the columns, which are bound once."""
        whole = self.whole_view()
        dataset, split = self._require_rows()
        if split.held_out is None:
            which = "train"
        if which not in self._bound:
            bound = copy.copy(whole)
            episodes = split.held_out if which == "held_out" else split.train
            if not split.is_whole:
                bounds = torch.from_numpy(dataset.episodes[episodes])
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
        return device if size <= _MEMORY_FRACTION * free else cpu


def _require_rewards(dataset: OfflineDataset, method: str) -> None:
    """Refuse rows without a reward, which would be trained on as if they had none to give.

    Raises:
        DatasetError: There is such a row; the line names the first.
    """
    known = dataset.columns.get("reward_mask")
    if known is not None and not known.all():
        raise DatasetError(
            f"{dataset.spec.origin}: row {known.argmin():,} has no reward (column 'reward_mask'), "
            f"and {method} needs that of every row: take such rows out, or train DVFModule, which "
            "learns the rewards from a few."
        )
