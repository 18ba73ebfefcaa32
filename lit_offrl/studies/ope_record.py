"""The record of an off-policy evaluation: its numbers, and how they were made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from lit_offrl.evaluation.record import JSONRecord
from lit_offrl.studies.measures import rank_summary

ESTIMATORS = ("dvf", "fqe")


@dataclass(frozen=True)
class CandidateValue:
    """What is known of one candidate, None where it is unknown. Values are discounted returns.

    Attributes:
        label: Index φ, and the checkpoint's name if one acts.
        policy: Index φ of the policy.
        checkpoint: Path of the checkpoint that acts; None where logged actions were cloned.
        seen_in_training: Whether rows of this φ were among DVF's and FQE's training rows.
        truth: Mean discounted return of ``truth_episodes``, with its standard error.
        dvf: Value by DVF, the mean over the initial states, with its standard error over these.
        fqe: Value by fitted Q evaluation, as ``dvf``.
    """

    label: str
    policy: float
    checkpoint: str | None
    checkpoint_sha256: str | None
    seen_in_training: bool
    truth: float | None
    truth_error: float | None
    truth_episodes: int
    dvf: float
    dvf_error: float | None
    fqe: float | None = None
    fqe_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class OPERecord(JSONRecord):
    """One off-policy evaluation, with what ``EvaluationRecord`` has of data and checkpoint.

    Attributes:
        candidates: One entry per candidate.
        summary: For each estimator ``spearman``, ``regret_at_1`` and so on (``rank_summary``) over
            the candidates with a known truth, and ``seconds``; None where undefined.
        gamma: Discount of values and truth.
        trained_on_sha256: Hash of the file that DVF was trained on.
        policy_representation: Kind of φ.
        initial_states: Number M of initial states.
        num_samples: Number n of states drawn by ρ for each initial state.
        sampler: Sampler of ρ.
        truth_source: ``data`` or ``rollouts``.
        truth_cut_weight: Largest γ^length at which a time limit cut a recording off.
        fqe: Settings of fitted Q evaluation; None where it was left out.
        fqe_trace: Values by FQE after each tenth of its steps, (10, K).
        seed: Seed of clones, nets and noise.
    """

    candidates: tuple[CandidateValue, ...]
    summary: Mapping[str, Mapping[str, float | None]]
    gamma: float
    dataset: str
    dataset_sha256: str | None
    dataset_handling: tuple[str, ...]
    trained_on_sha256: str | None
    checkpoint: str
    checkpoint_sha256: str
    policy_representation: str
    initial_states: int
    num_samples: int
    sampler: str
    truth_source: str
    truth_cut_weight: float
    fqe: Mapping[str, Any] | None
    fqe_trace: list[list[float]] | None
    seed: int

    def estimators(self) -> list[str]:
        """Those that were run."""
        return [name for name in ESTIMATORS if name in self.summary]

    def metrics(self) -> dict[str, float]:
        """Return the summary's defined numbers as ``dvf_spearman`` and so on."""
        return {
            f"{estimator}_{name}": value
            for estimator, numbers in self.summary.items()
            for name, value in numbers.items()
            if value is not None
        }

    def table(self) -> Table:
        """Return a table for the terminal: one row a candidate, the best of each column marked."""
        title = f"Discounted returns (γ = {self.gamma:g}) of policies of {self.dataset}"
        table = Table(title=title)
        columns = ["truth", *self.estimators()]
        table.add_column("policy")
        for name in columns:
            table.add_column(f"{name.upper() if name != 'truth' else name} ± s.e.", justify="right")
        table.add_column("seen in training")
        best = {name: max(_known(self.candidates, name), default=math.nan) for name in columns}
        for one in self.candidates:
            cells = []
            for name in columns:
                value, error = getattr(one, name), getattr(one, f"{name}_error")
                spread = "" if error is None else f" ± {error:.2f}"
                text = "unknown" if value is None else f"{value:.2f}{spread}"
                cells.append(f"[bold]{text}[/bold]" if value == best[name] else text)
            table.add_row(one.label, *cells, "yes" if one.seen_in_training else "no")
        remarks = [f"{self.dataset}: {sentence}." for sentence in self.dataset_handling]
        if self.dataset_sha256 != self.trained_on_sha256:
            remarks.append("These are other data than DVF was trained on.")
        table.caption = "\n".join(remarks) or None
        return table

    def lines(self) -> list[str]:
        """Return the summary, a line an estimator."""
        known = sum(one.truth is not None for one in self.candidates)
        lines = []
        for name in self.estimators():
            numbers = self.summary[name]
            values = [getattr(one, name) for one in self.candidates]
            best = [
                o.label for o, v in zip(self.candidates, values, strict=True) if v == max(values)
            ]
            said = [f"{name.upper()}: best {' and '.join(best)}"]
            if known:
                said += [
                    f"Spearman {_text(numbers['spearman'])}",
                    f"regret@1 {_text(numbers['regret_at_1'])} "
                    f"({_text(numbers['regret_at_1_share'])} of the range)",
                    f"mean absolute error {_text(numbers['mean_absolute_error'])}",
                ]
            said.append(f"{numbers['seconds']:.0f} s")
            lines.append(", ".join(said))
        return lines


def summarise(
    truth: np.ndarray, estimates: Mapping[str, np.ndarray], seconds: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """Summarise estimators (K,) against truth (K,), NaN where unknown; undefined is None."""
    known = np.isfinite(truth)
    return {
        name: {key: number(value) for key, value in rank_summary(truth[known], v[known]).items()}
        | {"seconds": seconds[name]}
        for name, v in estimates.items()
    }


def number(value: float) -> float | None:
    """Return a plain number, None for NaN, which JSON does not know."""
    return float(value) if math.isfinite(value) else None


def _known(candidates: tuple[CandidateValue, ...], name: str) -> list[float]:
    return [value for one in candidates if (value := getattr(one, name)) is not None]


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
