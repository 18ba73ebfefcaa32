"""``Snippets``: pieces of H steps of an episode.

episode [start, stop), H = 4:   s_start … s_t  s_{t+1} s_{t+2} s_{t+3} | s_{t+4} …
                                snippet ──┘────────────────────────┘     └ the state after it
cut short by its end:           s_t  s_{t+1}  0  0                       mask 1 1 0 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.rows import Rows, Spans
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import BoundView, View

Partial = Literal["terminal", "all", "none"]
Goals = Literal["column", "hindsight"]


class SnippetBatch(NamedTuple):
    """Snippets of H steps that begin at rows t; what the data lack is None.

    With n real steps (``mask``), the target of a value function over snippets is
    ``returns + discounts * ~terminals * V(next_observations)``.

    Attributes:
        observations: States s_t … s_{t+n−1}, then zeros.
        actions: Actions a_t … a_{t+n−1}, then zeros.
        returns: Sums Σ_{i<n} γ^i r_{t+i}; None where any reward of the data is unknown.
        next_observations: State s_{t+n} after the snippet; s_{t+n−1} at a true terminal whose next
            state is unknown.
        terminals: Whether the snippet ends in a true terminal, so that nothing is bootstrapped.
        discounts: Discounts γ^n.
        mask: Which of the H steps are real.
        goals: Goals of the snippets' first rows, or later states of their episodes, as the view
            says.
        weights: Importance weights, where rows are drawn by priority.
        rows: Numbers t of the first rows in the dataset.
    """

    observations: Float[Tensor, "B H o"]
    actions: Float[Tensor, "B H a"]
    returns: Float[Tensor, " B"] | None
    next_observations: Float[Tensor, "B o"]
    terminals: Bool[Tensor, " B"]
    discounts: Float[Tensor, " B"]
    mask: Bool[Tensor, "B H"]
    goals: Float[Tensor, "B g"] | None
    weights: Float[Tensor, " B"] | None
    rows: Int[Tensor, " B"]


@dataclass(frozen=True)
class Snippets(View):
    """Snippets of H steps of an episode, one for each row that one can begin at (LDCQ, Section 4).

    A snippet may lack steps where its episode ends. If a true terminal cuts it short, it is
    complete knowledge, and often the only one of a goal's reward; if a timeout does, it says
    nothing of the H steps that a skill takes. So the first are kept, padded and masked, and the
    second left out (paper: silent), unless ``all`` are requested, as where a timeout marks that a
    goal was reached. A snippet whose next state is not in the data ends one row earlier. In data
    without ``next_observations`` that is so at the last row of an episode that timed out.

    Args:
        horizon: Number H of steps of a snippet, at least 1.
        gamma: Discount within the snippet, in [0, 1].
        partial: Which snippets of fewer than H steps are kept: those that end in a ``terminal``,
            ``all`` of at least one step, or ``none``.
        every: Number of rows, 1 to H, between the rows of an episode at which snippets begin, so
            that fewer have to be computed with. Where the episode has no shorter ones, its last
            full snippet is kept too, so that they have each step that snippets at all rows have.
        goals: Goals of the batches: ``column`` for the data's, if there are any; ``hindsight`` for
            a state of the episode, drawn evenly from the one after the snippet to the last known.
    """

    horizon: int = 30
    gamma: float = 0.995
    partial: Partial = "terminal"
    every: int = 1
    goals: Goals = "column"

    def __post_init__(self) -> None:
        require_in("[1, inf)", horizon=self.horizon)
        require_in("[0, 1]", gamma=self.gamma)
        for name, options in (("partial", get_args(Partial)), ("goals", get_args(Goals))):
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"Snippets: {name} is '{value}': give one of {options}.")
        if not 1 <= self.every <= self.horizon:
            raise ConfigError(
                f"Snippets: every is {self.every}: give a number from 1 to the horizon, "
                f"{self.horizon}, so that no step is left out."
            )

    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundSnippets:
        """Put the columns on a device; without actions, or where none fits, raise DatasetError."""
        return BoundSnippets(self, dataset, device)


class BoundSnippets(BoundView):
    """``Snippets`` over one dataset on one device."""

    def __init__(self, view: Snippets, dataset: OfflineDataset, device: torch.device | str) -> None:
        dataset.column("actions")
        self.view = view
        self._rows = rows = Rows(dataset, device)
        self.device = rows.device
        self.num_uniforms = int(view.goals == "hindsight")
        # An episode's snippets end before its limit: what follows their last row is known.
        known = rows.terminated | rows.beyond
        self._limits = rows.stops - (~known).long()
        self.spans = self._find_spans(dataset.spec.origin)
        last = int(self.spans.at(torch.tensor([len(self.spans) - 1])))

        mask = rows.columns.get("reward_mask")
        with_returns = "rewards" in rows.columns and (mask is None or bool(mask.all()))
        names = ("observations", "actions", *["rewards"] * with_returns)
        self._columns = {k: OverlappingRows(rows.columns[k], view.horizon, last) for k in names}
        self._steps = torch.arange(view.horizon, device=self.device)
        self._powers = view.gamma ** torch.arange(view.horizon + 1, dtype=torch.float64)
        self._powers = self._powers.float().to(self.device)

    def batch(
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B _"] | None = None
    ) -> SnippetBatch:
        """Return the snippets that begin at rows ``index``, elements of ``self.rows``.

        ``uniforms`` (B, 1) say which later state is a snippet's goal, where they come by hindsight.
        """
        rows, horizon = self._rows, self.view.horizon
        snippets = {name: column.at(index) for name, column in self._columns.items()}
        if self._all_full:
            final = index + (horizon - 1)
            mask = self._steps.new_ones((), dtype=torch.bool).expand(len(index), horizon)
            discounts = self._powers[-1].expand(len(index))
        else:
            # Limits rise, and a snippet begins before its own episode's.
            limits = self._limits[torch.searchsorted(self._limits, index, right=True)]
            count = (limits - index).clamp(max=horizon)
            final = index + count - 1
            mask = self._steps < count[:, None]
            discounts = self._powers.index_select(0, count)
            snippets = {
                name: part.masked_fill(~mask.view(*mask.shape, *[1] * (part.ndim - 2)), 0)
                for name, part in snippets.items()
            }
        rewards, terminals = snippets.get("rewards"), rows.need("terminals", final)
        return SnippetBatch(
            observations=snippets["observations"],
            actions=snippets["actions"],
            # Of the batch rather than of all rows beforehand: a float32 a row would be a tenth of
            # maze2d's columns, and the sum of a batch takes microseconds.
            returns=None if rewards is None else (rewards * self._powers[:-1]).sum(1),
            next_observations=rows.next_observations(final, terminals),
            terminals=terminals,
            discounts=discounts,
            mask=mask,
            goals=self._goals(index, final, uniforms),
            weights=None,
            rows=index,
        )

    def last_steps(self, index: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the rows of the last steps of the snippets that begin at rows ``index``."""
        limits = self._limits[torch.searchsorted(self._limits, index, right=True)]
        return torch.minimum(index + self.view.horizon, limits) - 1

    def states_after(self, final: Int[Tensor, " B"]) -> Float[Tensor, "B o"]:
        """Return the states after rows ``final``, of ``last_steps``."""
        return self._rows.next_observations(final)

    def terminal(self, final: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Return whether rows ``final`` are true terminals."""
        return self._rows.need("terminals", final)

    def _goals(self, index: Tensor, final: Tensor, uniforms: Tensor | None) -> Tensor | None:
        if self.view.goals == "column":
            return self._rows.take("goals", index)
        assert uniforms is not None  # loaders give what num_uniforms asks for
        limits = self._limits[torch.searchsorted(self._limits, index, right=True)]
        later = ((limits - final) * uniforms[:, 0]).long()
        return self._rows.next_observations(torch.minimum(final + later, limits - 1))

    def _find_spans(self, origin: str) -> Spans:
        rows, view = self._rows, self.view
        full = self._limits - (view.horizon - 1)
        partial = {"terminal": rows.terminated, "all": True, "none": False}[view.partial]
        stops = torch.where(torch.as_tensor(partial, device=self.device), self._limits, full)
        bounds = (rows.starts.cpu(), stops.cpu())
        whole = (stops == full).cpu()  # episodes that have full snippets alone
        spans = Spans(*(bounds if view.every == 1 else _every(*bounds, view.every, whole)))
        if len(spans) == 0:
            longest = int((self._limits - rows.starts).max())
            raise DatasetError(
                f"{origin}: no snippet of {view.horizon} steps fits, as no episode has more than "
                f"{longest} steps with a known next state: choose a smaller horizon, or "
                "partial 'all'."
            )
        self._all_full = bool((torch.minimum(stops, full) == stops)[stops > rows.starts].all())
        return spans


def _every(starts: Tensor, stops: Tensor, step: int, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Return every ``step``-th row of ranges, from each one's first, as ranges of one row.

    With them the last row of each of the ranges ``whole`` (E,), bool.
    """
    counts = ((stops - starts).clamp(min=0) + step - 1) // step
    place = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    rows = starts.repeat_interleave(counts) + place * step
    last = (stops - 1)[whole & (stops > starts)]
    rows = torch.cat([rows, last]).unique()  # in rising order
    return rows, rows + 1


class OverlappingRows:
    """The H rows from any row of a column on, as overlapping views of its memory, without copies.

    Rows near the column's end have fewer than H behind them: their snippets come from a copy of
    those rows, with zeros after them. The column (N,) or (N, d) is contiguous, and ``last`` is the
    last row that a snippet begins at.
    """

    def __init__(self, column: Tensor, horizon: int, last: int) -> None:
        self._shape = (horizon, *column.shape[1:])
        self._cut = max(0, len(column) - horizon + 1)  # from here on snippets need the zeros
        self._body = self._overlapping(column, self._cut)
        self._tail: Tensor | None = None
        if last >= self._cut:
            rest = column[self._cut :]
            padded = torch.cat([rest, rest.new_zeros(horizon - 1, *rest.shape[1:])])
            self._tail = self._overlapping(padded, len(rest))

    def at(self, index: Tensor) -> Tensor:
        """Return snippets (B, H) or (B, H, d) that begin at rows ``index`` (B,)."""
        if self._tail is None:
            return self._body.index_select(0, index).unflatten(1, self._shape)
        late = self._tail.index_select(0, (index - self._cut).clamp(min=0))
        if self._cut == 0:
            return late.unflatten(1, self._shape)
        early = self._body.index_select(0, index.clamp(max=self._cut - 1))
        # No branch on whether any row is late: on a GPU it would wait for the answer.
        return torch.where((index >= self._cut)[:, None], late, early).unflatten(1, self._shape)

    def _overlapping(self, column: Tensor, count: int) -> Tensor:
        width = column[:1].numel()
        return column.as_strided((count, self._shape[0] * width), (width, 1))
