"""Values of all rows of the training data, sampled once and then looked up (DVF's ``cached``)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.views import FutureStateBatch
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.dvf_value import CHAINS, DiffusedValue
from lit_offrl.modules.returns import lambda_returns

_STREAM = 2  # keeps the streams of one seed apart


class ValueCache:
    """What Q and the actor learn from instead of sampling values in each step.

    Attributes:
        next_values: V(s_{t+1}) by the row's number in the dataset (N,), 0 for rows that are not
            trained on; None before they are sampled.
        returns: λ-returns by the row's number (N,); None if they are not needed.
    """

    def __init__(self) -> None:
        self.next_values: Tensor | None = None
        self.returns: Tensor | None = None

    @torch.no_grad()
    def sample(self, value: DiffusedValue, module: OfflineModule) -> None:
        """Sample V(s_{t+1}) of every row, the rows shared among the processes.

        Each row has draws of its own: Q averages their errors away over neighbouring rows, whereas
        draws that all rows share would leave the same error in all of them.

        Args:
            value: Estimates the values.
            module: The method in training; it gives the data, the seed and the step.
        """
        trainer = module.trainer
        view = module.datamodule.train_view()
        values = torch.zeros(int(view.rows.max()) + 1, device=module.device)
        chunks = view.rows.split(max(1, CHAINS // value.num_samples))
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        numbers = range(module.global_rank, len(chunks), trainer.world_size)
        for number in tqdm(numbers, "values", unit="chunk", leave=False, disable=hidden):
            # the same noise for any number of processes
            keys = (module.seed, _STREAM, trainer.global_step, number)
            noise = ShardedGenerator(*keys, device=module.device)
            for rows, batch in _batches(module, (chunks[number],)):
                values[rows] = value.next_values(batch, noise)
        self.next_values, self.returns = trainer.strategy.reduce(values, reduce_op="sum"), None

    @torch.no_grad()
    def follow_trajectories(
        self, value: DiffusedValue, module: OfflineModule, trace: float
    ) -> None:
        """Compute the λ-return of every row from the sampled values of the next states.

        Args:
            value: Predicts the rewards that the data lack.
            module: The method in training, which gives the data.
            trace: Parameter λ in [0, 1].
        """
        assert self.next_values is not None  # sampled before
        view = module.datamodule.train_view()
        rewards = torch.zeros_like(self.next_values)
        terminals = torch.zeros_like(rewards).bool()
        for rows, batch in _batches(module, view.rows.split(CHAINS)):
            rewards[rows], terminals[rows] = value.rewards(batch), batch.terminals
        known = torch.zeros_like(terminals)
        known[view.rows.to(module.device)] = True
        last = torch.from_numpy(module.datamodule.dataset.episodes[:, 1] - 1).to(module.device)
        followed = known.roll(-1)  # rows of other episodes in between are not known
        followed[last[last < len(followed)]] = False
        followed[-1] = False
        self.returns = lambda_returns(
            rewards, self.next_values, terminals, followed, gamma=value.gamma, trace=trace
        )


def _batches(
    module: OfflineModule, chunks: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, FutureStateBatch]]:
    """Yield rows and their batch, both on the module's device."""
    view = module.datamodule.train_view()
    for index in chunks:
        unused = torch.zeros(len(index), view.num_uniforms, device=index.device)
        batch = module.transfer_batch_to_device(view.batch(index, unused), module.device, 0)
        yield index.to(module.device), batch
