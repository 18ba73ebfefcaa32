"""Values of checkpoints' policies from logged data alone, beside what the data's own policy earned.

For a robot without a simulator: fitted Q evaluation on the training episodes, read off in the first
states of episodes that were held out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from lit_offrl.common.seeds import mix
from lit_offrl.datasets.normalizers import MinMaxNormalizer
from lit_offrl.datasets.rows import as_tensor
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.evaluation.record import JSONRecord
from lit_offrl.evaluation.statistics import interval_within_range, standard_error
from lit_offrl.studies.candidates import Act
from lit_offrl.studies.fqe import FittedQ
from lit_offrl.studies.fqe_settings import FQESettings

_STARTS = 0x57A7  # keeps the streams of one seed apart


@dataclass(frozen=True)
class Value:
    """A mean discounted return.

    Attributes:
        mean: Mean over M first states or episodes.
        error: Standard error of the mean; None for a single one.
        low: Lower end of the 95 % bootstrap interval; None where there is none.
        high: Upper end of that interval.
    """

    mean: float
    error: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: np.ndarray) -> Value:
        """Summarise values (M,)."""
        ends = interval_within_range(values, np.mean)
        error, low, high = (
            float(number) if math.isfinite(number) else None
            for number in (standard_error(values), *ends)
        )
        return cls(float(values.mean()), error, low, high)


@dataclass(frozen=True)
class PolicyValue:
    """A checkpoint's policy and its value; of its training it has what ``EvaluationRecord`` has.

    Attributes:
        label: Name in the table.
        trained_on_sha256: Hash of the file that it was trained on.
        fqe: V^π by fitted Q evaluation, over the first states.
        trace: Mean after each tenth of FQE's steps, (10,), which shows whether it converged.
        remark: How a policy that remembers earlier steps was made to act on single states.
    """

    label: str
    method: str
    checkpoint: str
    checkpoint_sha256: str
    checkpoint_rule: str
    training_seed: int | None
    training_steps: int | None
    trained_on_sha256: str | None
    fqe: Value
    trace: tuple[float, ...]
    remark: str | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyValuesRecord(JSONRecord):
    """Values of checkpoints on logged data, of which it has what ``EvaluationRecord`` has.

    Attributes:
        policies: One entry per policy.
        behaviour: Discounted Monte-Carlo return of the episodes that the first states begin.
        behaviour_cut_weight: Largest weight γ^length at which such an episode was cut off by a
            time limit, which FQE's estimates do not take into account.
        held_out: Whether those episodes were held out from the first checkpoint's training.
        gamma: Discount γ.
        initial_states: M.
        fqe: Settings of fitted Q evaluation.
        seed: Seed of FQE's nets and rows, and of the choice of first states.
    """

    policies: tuple[PolicyValue, ...]
    behaviour: Value
    behaviour_cut_weight: float
    held_out: bool
    gamma: float
    dataset: str
    dataset_sha256: str | None
    dataset_handling: tuple[str, ...]
    initial_states: int
    fqe: Mapping[str, Any]
    seed: int

    def metrics(self, policy: PolicyValue) -> dict[str, float]:
        """Return the metrics that are added to a checkpoint's MLflow run, by name."""
        found = {"fqe": policy.fqe.mean, "behaviour": self.behaviour.mean}
        return found if policy.fqe.error is None else found | {"fqe_error": policy.fqe.error}

    def table(self) -> Table:
        """Return a table for the terminal: a row a checkpoint, and the data's own policy last."""
        table = Table(title=f"Discounted returns (γ = {self.gamma:g}) on {self.dataset}")
        for heading in ("policy", "value", "± s.e.", "95 %", "by"):
            table.add_column(
                heading, justify="right" if heading not in ("policy", "by") else "left"
            )
        for one in self.policies:
            table.add_row(one.label, *_cells(one.fqe), "FQE")
        table.add_section()
        table.add_row("the data's own policy", *_cells(self.behaviour), "its episodes")
        table.caption = "\n".join(self.remarks())
        return table

    def remarks(self) -> list[str]:
        """Return what has to be known to read the table, a sentence each."""
        whose = "held-out" if self.held_out else "all (none was held out)"
        said = [
            f"From the first states of {self.initial_states} {whose} episodes. Errors and intervals"
            " are over those states, and know nothing of FQE's own error."
        ]
        if self.behaviour_cut_weight > 0.01:
            said.append(
                f"Time limits cut the data's episodes off at a weight of up to"
                f" {self.behaviour_cut_weight:.2g}; FQE knows no time limit."
            )
        for one in self.policies:
            if abs(one.trace[-1] - one.trace[-2]) > 0.02 * max(1.0, abs(one.trace[-1])):
                said.append(
                    f"{one.label}: the value still moved in the last tenth of FQE's steps: give"
                    " more --fqe_steps."
                )
            if one.remark is not None:
                said.append(f"{one.label}: {one.remark}.")
            if one.trained_on_sha256 not in (None, self.dataset_sha256):
                said.append(f"{one.label}: was trained on other data.")
        return [*said, *(f"{self.dataset}: {sentence}." for sentence in self.dataset_handling)]


def first_states(dataset: OfflineDataset, *, most: int, seed: int) -> np.ndarray:
    """Choose up to ``most`` episodes to begin in; returns their numbers (M,), ascending."""
    random = np.random.default_rng(mix(seed, _STARTS))
    return np.sort(random.permutation(len(dataset.episodes))[:most])


def fitted_values(
    train_set: OfflineDataset,
    policies: Sequence[Act],
    starts: np.ndarray,
    *,
    gamma: float,
    settings: FQESettings,
    seed: int,
    device: str | torch.device,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Value K policies in raw observations ``starts`` (M, o) by fitted Q evaluation.

    Returns:
        Values (K, M), and their means (K, 10) after each tenth of the steps.

    Raises:
        DatasetError: The data have no rewards, or none in some rows.
        TrainingError: Q diverged.
    """
    normalizer = MinMaxNormalizer(train_set.spec.observation_dim)
    normalizer.fit(train_set.columns["observations"]).to(device)

    def actions(states: Tensor) -> Tensor:
        return torch.stack([act(states) for act in policies])

    fitted = FittedQ(
        train_set,
        actions,
        len(policies),
        gamma=gamma,
        normalize=normalizer.normalize,
        settings=settings,
        seed=seed,
        device=device,
    )
    values, trace = fitted.fit_and_value(as_tensor(starts, device), draws=8, progress=progress)
    return values, trace.T


def _cells(value: Value) -> tuple[str, str, str]:
    error = "–" if value.error is None else f"{value.error:.2f}"
    known = value.low is not None and value.high is not None
    return f"{value.mean:.2f}", error, f"{value.low:.2f} … {value.high:.2f}" if known else "–"
