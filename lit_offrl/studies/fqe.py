"""Fitted Q evaluation: the values of several policies from logged steps, by bootstrapping.

Source: Le et al., 2019, Batch policy learning under constraints, Algorithm 3 (FQE), with a slowly
moving target network in place of the exact regression of each iteration.

Plain torch and no module: it makes no policy, has nothing to resume, and is over in one call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_offrl.common.errors import TrainingError
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Transitions
from lit_offrl.nets import EnsembleMLP, frozen_copy, polyak_update_
from lit_offrl.studies.fqe_settings import FQESettings
from lit_offrl.studies.ope_truth import discounted_returns

_INIT, _ROWS = 0xF9E0, 0xF9E1  # keep the streams of one seed apart


class FittedQ:
    """Q^π of K policies: one net each, all in one batched product a layer.

    Args:
        train_set: Data that Q is fitted to, with actions and rewards.
        actions: Draws all policies' actions in raw observations, (B, o) or (K, B, o) → (K, B, a).
        candidates: Number K of policies.
        gamma: Discount γ.
        normalize: Scales raw observations (…, o).
        settings: Settings of the fit.
        seed: Seed of the nets and of the order of rows.
        device: Device of the computation.

    Raises:
        DatasetError: The data have no rewards, or none in some rows.
    """

    def __init__(
        self,
        train_set: OfflineDataset,
        actions: Callable[[Tensor], Tensor],
        candidates: int,
        *,
        gamma: float,
        normalize: Callable[[Tensor], Tensor],
        settings: FQESettings,
        seed: int,
        device: str | torch.device,
    ) -> None:
        # The nets' output is in units of the largest return.
        self.unit = float(np.abs(discounted_returns(train_set, gamma)).max()) or 1.0
        self.view, self.actions = Transitions().bind(train_set, device), actions
        self.settings, self.gamma, self.normalize = settings, gamma, normalize
        size = settings.batch_size
        self._order = RowOrder(self.view.spans, size, mix(seed, _ROWS), device=device)
        first = self.view.batch(self._order.rows(0), torch.zeros(size, 0))
        inputs = first.observations.shape[1] + first.actions.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, _INIT))
            self._net = EnsembleMLP(candidates, inputs, settings.hidden).to(device)
        self._target = frozen_copy(self._net)
        rate = settings.learning_rate
        self._optimizer = torch.optim.Adam(self._net.parameters(), rate, fused=True)
        self.steps = 0

    def fit_and_value(
        self,
        starts: Tensor,
        *,
        draws: int = 32,
        value_actions: Callable[[Tensor], Tensor] | None = None,
        progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit for all steps of the settings, and value the policies after each tenth of them.

        Args:
            starts: Raw observations (M, o), or (K, M, o) where each policy has its own states.
            draws: Number of actions drawn for each state.
            value_actions: Draws the actions of the values with its own noise, so that values change
                no training; those of training by default.
            progress: Whether to show a bar.

        Returns:
            The values (K, M) in the end, and the means (10, K) after each tenth, which show whether
            the values converged; both in units of the return.

        Raises:
            TrainingError: Q diverged.
        """
        trace, error = [], torch.zeros(())
        cuts = [self.settings.steps * tenth // 10 for tenth in range(11)]
        for tenth in itertools.starmap(range, itertools.pairwise(cuts)):
            for _ in tqdm(tenth, "FQE", unit="step", leave=False, disable=not progress):
                error = self._step()
            if not bool(error.isfinite()):
                raise TrainingError(
                    f"FQE's error is not finite after {self.steps} steps: Q diverged; lower its "
                    "learning rate, or leave it out with --baseline none."
                )
            values = self._values(starts, draws, value_actions or self.actions)
            trace.append(values.mean(axis=1))
        return values, np.stack(trace)

    def _step(self) -> Tensor:
        index = self._order.rows(self.steps)
        batch = self.view.batch(index, torch.zeros(len(index), 0))
        assert batch.rewards is not None  # __init__ has read them
        with torch.no_grad():
            following = self._run(
                self._target, batch.next_observations, self.actions(batch.next_observations)
            )
            bootstrap = self.gamma * following.where(~batch.terminals, 0.0)
            target = batch.rewards / self.unit + bootstrap
        error = (self._run(self._net, batch.observations, batch.actions) - target).square()
        loss = error.mean(dim=1).sum()  # the sum: each net's gradient is that of its own fit
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        polyak_update_(self._target, self._net, self.settings.tau)
        self.steps += 1
        return error.detach().mean()

    def _run(self, net: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
        """Each member's Q / unit, (K, B); members may have rows or actions of their own."""
        scaled = self.normalize(observations)
        scaled = scaled.expand(*actions.shape[:-1], -1)
        return net(torch.cat([scaled, actions], dim=-1)).squeeze(-1)

    @torch.no_grad()
    def _values(
        self, observations: Tensor, draws: int, actions: Callable[[Tensor], Tensor]
    ) -> np.ndarray:
        """V^π(s) (K, M), the mean of the target network's Q over some actions of π."""
        total = torch.zeros(())
        for _ in range(draws):
            total = total + self._run(self._target, observations, actions(observations))
        return (self.unit * total / draws).double().cpu().numpy()
