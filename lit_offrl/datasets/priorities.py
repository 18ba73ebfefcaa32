"""Rows drawn in proportion to priorities that training sets (Schaul et al. 2016, Section 3.3).

P(i) = p_i^α / Σ_j p_j^α        w_i = (n · P(i))^−β / max over the step's rows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.block_sums import BlockSums, set_largest
from lit_offrl.datasets.sampler import Draw, Order

_STRATA = 0x57A7  # keeps the stream of one seed apart
_ABSENT = -1.0  # the priority of a row that is not in the order


@dataclass(frozen=True)
class Linear:
    """A number that goes from ``start`` to ``end`` in ``steps`` steps, and stays there.

    Args:
        start: The number at step 0.
        end: The number from step ``steps`` on.
        steps: Number of steps from one to the other, at least 1.
        every: Number of steps, at least 1, between changes.
    """

    start: float
    end: float
    steps: int
    every: int = 1

    def __post_init__(self) -> None:
        require_in("[1, inf)", steps=self.steps, every=self.every)

    def at(self, step: int) -> float:
        """Return the number at a step."""
        share = min(1.0, step // self.every * self.every / self.steps)
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class Priorities:
    """How priorities are used; the defaults are LDCQ's (β 0.3 → 1 by 0.03 every 3000 steps).

    Args:
        alpha: Exponent of the priorities, at least 0; 0 ignores them. Whenever it changes, the
            weights of all rows are computed again: choose a large ``every``.
        beta: Exponent of the importance weights, at least 0; 1 undoes the priorities' bias wholly.
    """

    alpha: Linear | float = 0.7
    beta: Linear | float = Linear(0.3, 1.0, steps=70_000, every=3000)

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            ends = (value.start, value.end) if isinstance(value, Linear) else (value,)
            for end in ends:
                require_in("[0, inf)", **{name: end})


class PrioritizedOrder(Order):
    """Rows drawn in proportion to p^α, one from each of equal shares of the sum (stratified).

    A step's rows are a function of (seed, step, rank, world size) and of the priorities. A row that
    has had none yet has the largest that any has had, at least 1, so that each is drawn before long
    (algorithm 1, line 6). Each process holds them all: so every process makes the updates of all,
    and then they stay equal, as do the rows that they cut into blocks.

    Uniform numbers are drawn on the CPU, but sums are rounded as the device does.

    Args:
        args: Those of :class:`Order`.
        settings: Exponents of priorities and weights.
        accumulated: Number of this order's steps in an optimiser step, by which exponents change.
        kwargs: Those of :class:`Order`.
    """

    def __init__(
        self, *args: Any, settings: Priorities | None = None, accumulated: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings or Priorities()
        self._accumulated = accumulated
        self._priorities = torch.full((self.spans.stop,), _ABSENT, device=self.device)
        self._priorities[self.spans.all().to(self.device)] = 1.0
        self._largest = torch.ones((), device=self.device)
        self._new = self._priorities != _ABSENT  # which have had no priority yet
        self._alpha = _value(self.settings.alpha, 0)
        self._sums = BlockSums(self._weigh(self._priorities))
        self._all_zero: bool | None = False  # None: not known since the last update

    @property
    def priorities(self) -> Float[Tensor, " N"]:
        """p of each row of the dataset up to the last, float32; −1 for one not in the order."""
        return self._priorities

    def draw(self, step: int, steps: int = 1) -> Draw:
        """Return this rank's rows (B,) of a step and their importance weights (B,), float32.

        Raises:
            ConfigError: No row has a priority above 0.
            ValueError: More than one step is wanted, though each sets priorities for the next.
        """
        if steps != 1:
            raise ValueError(f"rows of {steps} steps cannot be drawn by priorities at once")
        done = step // self._accumulated
        if (alpha := _value(self.settings.alpha, done)) != self._alpha:
            self._alpha = alpha
            self._sums = BlockSums(self._weigh(self._priorities))
        if self._all_zero is None:
            self._all_zero = not bool(self._sums.total > 0)
        if self._all_zero:
            raise ConfigError(
                "no row has a priority above 0, so none can be drawn: add a small number to "
                "the priorities."
            )
        # Of all ranks' rows, since the largest weight is theirs in common.
        count = self.batch_size * self.world_size
        drawn = ShardedGenerator(self.seed, _STRATA, step).uniform((count,), torch.float64)
        shares = ((torch.arange(count) + drawn) / count).to(self.device)
        rows, chance = self._sums.find(shares)
        weights = (self.num_rows * chance) ** -_value(self.settings.beta, done)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return Draw(rows[mine], (weights[mine] / weights.max()).float())

    def update(self, rows: Int[Tensor, " B"], priorities: Float[Tensor, " B"]) -> None:
        """Set priorities, such as absolute TD errors; of several for one row the largest holds.

        Args:
            rows: Numbers of rows in the dataset, as batches have them; those of all processes.
            priorities: Finite and ≥ 0; a row of priority 0 is not drawn again until it is raised.

        Raises:
            ConfigError: A priority is below 0 or not finite, or a row is not in the order;
                nothing is changed then.
        """
        rows, values = rows.to(self.device), priorities.detach().to(self.device).float()
        if rows.shape != values.shape or rows.ndim != 1:
            raise ConfigError(
                f"priorities of shape {tuple(values.shape)} for rows of shape "
                f"{tuple(rows.shape)}: give one number a row."
            )
        if len(rows) == 0:
            return
        inside = (rows >= 0) & (rows < len(self._priorities))
        known = self._priorities.index_select(0, rows.where(inside, 0)) != _ABSENT
        good = inside & known & (values >= 0) & values.isfinite()
        if not bool(good.all()):
            at = int(good.long().argmin())
            raise ConfigError(
                f"row {int(rows[at]):,} cannot have the priority {float(values[at])}: priorities "
                "are finite numbers of at least 0, for rows that the order holds."
            )
        set_largest(self._priorities, rows, values)
        self._new[rows] = False
        self._sums.set(rows, self._weigh(values))
        if bool(values.max() > self._largest):  # a record, which is rare after the first steps
            self._largest = values.max()
            self._priorities = torch.where(self._new, self._largest, self._priorities)
            self._sums = BlockSums(self._weigh(self._priorities))
        self._all_zero = None

    def state_dict(self) -> dict[str, Any]:
        """Priorities and weights of all rows, so that a resumed run draws the very same rows."""
        return {
            "priorities": self._priorities.cpu().clone(),
            "largest": self._largest.cpu().clone(),
            "new": self._new.cpu().clone(),
            "alpha": self._alpha,
            # Not p^α anew: a power may be rounded otherwise in another place of a tensor.
            "weights": self._sums.weights.cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            ConfigError: It has another number of rows.
        """
        if not state:  # of a run's beginning
            return
        found, here = len(state["priorities"]), len(self._priorities)
        if found != here:
            raise ConfigError(
                f"the priorities are of {found:,} rows, but the data have {here:,}: resume with "
                "the data, view and split of the first run."
            )
        self._priorities = state["priorities"].to(self.device, copy=True)
        self._largest = state["largest"].to(self.device, copy=True)
        # A state of before these were known keeps the 1 that they had.
        new = state.get("new", torch.zeros(here, dtype=torch.bool))
        self._new = new.to(self.device, copy=True)
        self._alpha = state["alpha"]
        self._sums = BlockSums(state["weights"].to(self.device))
        self._all_zero = None

    def _weigh(self, priorities: Tensor) -> Tensor:
        """Return p^α, float64; 0 for p = 0 whatever α, and for a row not in the order."""
        values = priorities.double()
        return torch.where(values > 0, values.clamp(min=0) ** self._alpha, 0.0)


def _value(exponent: Linear | float, step: int) -> float:
    return exponent.at(step) if isinstance(exponent, Linear) else exponent
