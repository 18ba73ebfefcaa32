"""What Diffuser and Decision Diffuser share: a diffusion model of windows of H steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import given_noise
from lit_offrl.datasets.normalizers import Normalizer, make_normalizer
from lit_offrl.datasets.views import WindowBatch, Windows
from lit_offrl.datasets.views.snippets import Partial
from lit_offrl.diffusion import Denoise, Schedule, diffusion_loss, make_sampler
from lit_offrl.diffusion.samplers import Step
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.ldcq.options import Goal
from lit_offrl.modules.plan_policy import Follow, GoalPlanPolicy, PlanPolicy
from lit_offrl.nets import TemporalUNet, polyak_update_
from lit_offrl.nets.policies import centre_and_scale

_ROWS = 2048  # plans that are drawn at once, which bounds the memory


class PlanModule(OfflineModule):
    """A method that plans by sampling windows (a_t, s_t) … (a_{t+H−1}, s_{t+H−1}) or their states.

    What is known of a plan is fixed in each step of the sampler: the first observations, and with
    ``goal_dims`` where the last one is. Training fixes the same of the data's windows.

    A subclass says whether plans have actions (``with_actions``) and gives ``losses`` and
    ``policy``.

    Args:
        horizon: Number H of steps of a plan, a multiple of 2^(L − 1) for L levels of the U-net.
        partial: Which windows of fewer than H steps are used, see ``Snippets``; past its end such a
            window stays in the state in which the episode ended. Use ``all`` where timeouts mark
            that a goal was reached, as in maze2d.
        normalize: How observations and actions are scaled: ``mean_std`` to mean 0 and standard
            deviation 1, ``min_max`` from the range of the data to [−1, 1].
        gamma: Discount factor in [0, 1] of a window's return, which includes all rewards up to the
            end of the episode.
        termination_penalty: Penalty, at least 0, that is subtracted from the last reward of an
            episode that ended in a true terminal, as in the authors' code.
        goal_dims: Dimensions of the last observation of a plan that are fixed to a goal; none by
            default.
        width: Channels of the U-net's first level, a multiple of 8.
        multipliers: Channels of the levels as multiples of ``width``.
        prediction: What the U-net predicts.
        schedule: Noise schedule of the diffusion.
        diffusion_steps: Number T of diffusion steps, at least 1.
        sampling_steps: Number of the sampler's steps, 1 to T; all T by default.
        clip: Bound, above 0, of the estimate of a plan in each step of the sampler; no bound by
            default.
        temperature: Factor, at least 0, of the sampler's noise.
        loss_discount: Factor in (0, 1] between the weights of successive steps in the loss; the
            weights have a mean of 1.
        ema_rate: Rate in (0, 1] at which the averaged networks, which make the plans, follow the
            trained ones.
        ema_every: Number of optimiser steps, at least 1, from one update of the averages to the
            next.
        ema_start: Optimiser step, at least 0, up to which the averages equal the trained networks.
        learning_rate: Adam's learning rate, at least 0.
        **kwargs: Options of every method, see ``OfflineModule``.

    Raises:
        ConfigError: The data have no actions, or a number is out of its range.
    """

    with_actions = True
    history = 1
    """Number C of first observations of a plan that may be known."""
    normalizer: Normalizer  # type: ignore[assignment]
    low: Tensor
    high: Tensor
    weights: Tensor

    def __init__(
        self,
        *args: Any,
        horizon: Annotated[int, "[2, inf)"] = 32,
        partial: Partial = "terminal",
        normalize: Literal["mean_std", "min_max"] = "mean_std",
        gamma: Annotated[float, "[0, 1]"] = 0.99,
        termination_penalty: Annotated[float, "[0, inf)"] = 100.0,
        goal_dims: Sequence[int] | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        prediction: Literal["x0", "epsilon", "v"] = "x0",
        schedule: Literal["cosine", "vp", "linear"] = "cosine",
        diffusion_steps: Annotated[int, "[1, inf)"] = 20,
        sampling_steps: Annotated[int | None, "[1, inf)"] = None,
        clip: Annotated[float | None, "(0, inf)"] = None,
        temperature: Annotated[float, "[0, inf)"] = 1.0,
        loss_discount: Annotated[float, "(0, 1]"] = 1.0,
        ema_rate: Annotated[float, "(0, 1]"] = 0.005,
        ema_every: Annotated[int, "[1, inf)"] = 10,
        ema_start: Annotated[int, "[0, inf)"] = 2000,
        learning_rate: float = 2e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, learning_rate=learning_rate, **kwargs)
        if self.action_dim < 1:
            raise ConfigError(
                f"{type(self).__name__} needs a dataset with actions; this one has none."
            )
        size, dims = self.observation_dim, tuple(goal_dims or ())
        if not all(0 <= dim < size for dim in dims):
            raise ConfigError(
                f"goal_dims is {list(dims)}; name dimensions of the observation, 0 to {size - 1}."
            )
        self.horizon, self.goal_dims = horizon, dims
        self.windows = Windows(horizon, gamma, partial, -termination_penalty)
        self.normalizer = make_normalizer(normalize, size)
        self.action_normalizer = make_normalizer(normalize, self.action_dim)
        centre, scale = centre_and_scale(self.action_dim, self.action_low, self.action_high)
        self.register_buffer("low", centre - scale, persistent=False)
        self.register_buffer("high", centre + scale, persistent=False)
        self.prediction: Literal["x0", "epsilon", "v"] = prediction
        self.schedule = Schedule(schedule, diffusion_steps)
        options = {"num_steps": sampling_steps, "clip": clip, "temperature": temperature}
        self.sampler = make_sampler("ddpm", variance="posterior", **options)
        self.sampler.steps(self.schedule)  # refuses what could not act, before it is trained
        self.ema_rate, self.ema_every, self.ema_start = ema_rate, ema_every, ema_start
        self.event_dim = size + self.action_dim * self.with_actions
        self.sizes: dict[str, Any] = {"width": width, "multipliers": multipliers}
        weights = loss_discount ** torch.arange(horizon, dtype=torch.float64)[:, None]
        weights = (weights / weights.mean()).float().repeat(1, self.event_dim)
        self.register_buffer("weights", weights, persistent=False)

    # ---- training ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the statistics of the actions, too, from the data."""
        super().setup(stage)
        if stage == "fit" and self.datamodule is not None and not self.action_normalizer.fitted:
            self.action_normalizer.fit(self.datamodule.train_column("actions"))

    def view(self) -> Windows:
        """Windows of H steps."""
        return self.windows

    def returns_of_training(self) -> Tensor | None:
        """Returns (n,) of the training windows; None without a datamodule of this view."""
        view = None if self.datamodule is None else self.datamodule.train_view()
        returns = getattr(view, "returns", None)
        return None if returns is None or view is None else returns[view.rows]

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """Networks that plan, each after the one that it follows."""
        raise NotImplementedError(f"{type(self).__name__} must define averaged().")

    def graph_key(self, step: int) -> float:
        """Rate at which averages follow in a step, 0 where they stay."""
        if step < self.ema_start:
            return 1.0
        return 0.0 if step % self.ema_every else self.ema_rate

    def after_step(self) -> None:
        """Move the averages."""
        if rate := self.graph_key(self.trainer.global_step):
            for network, average in self.averaged():
                polyak_update_(average, network, rate)

    def require_windows(self, batch: Any, returns: bool = False) -> None:
        """Refuse batches of another view or horizon, or without returns.

        Raises:
            ConfigError: The batch is of something else.
        """
        self.require_batch(batch, WindowBatch, "Windows")
        if batch.mask.shape[1] != self.horizon or (returns and batch.returns is None):
            needs = " with the reward of every row" if returns and batch.returns is None else ""
            raise ConfigError(
                f"{type(self).__name__} trains on Windows of horizon {self.horizon}{needs}: leave "
                "data.init_args.view to the model, and take data that have them."
            )

    def scaled(self, batch: WindowBatch) -> Tensor:
        """Return the windows (B, H, e) of a batch as they are diffused: actions, observations."""
        observations = self.normalizer.normalize(batch.observations)
        if not self.with_actions:
            return observations
        actions = self.action_normalizer.normalize(batch.actions)
        return torch.cat([actions, observations], dim=-1)

    def known_of(self, counts: Tensor) -> Tensor:
        """Return what is fixed of plans of which ``counts`` (B,) first observations are known.

        bool (B, H, e); the goal's dimensions of the last observation are among it.
        """
        steps = torch.arange(self.horizon, device=counts.device)
        known = self.weights.new_zeros(counts.shape[0], *self.weights.shape, dtype=torch.bool)
        known[..., self.event_dim - self.observation_dim :] = (steps < counts[:, None])[..., None]
        for dim in self.goal_dims:
            known[:, -1, dim - self.observation_dim].fill_(True)
        return known

    def plan_loss(
        self, net: TemporalUNet, windows: Tensor, known: Tensor, encoded: Tensor | None = None
    ) -> Tensor:
        """Denoising loss (B,) of windows (B, H, e), of what is not known of them."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return net.denoise(torch.where(known, windows, x), t, encoded)

        return diffusion_loss(
            denoise,
            self.schedule,
            windows,
            generator=self.noise,
            prediction=self.prediction,
            entries=self.weights * ~known,
        )

    def require_steps(self, execute_steps: int | None) -> None:
        """Refuse to follow plans for longer than they are.

        Raises:
            ConfigError: A plan does not have that many steps; or no step is ahead of its history.
        """
        most = self.horizon - self.history
        if most < 1:
            raise ConfigError(
                f"history is {self.history}: give 1 to {self.horizon - 1}, as plans have "
                f"{self.horizon} steps."
            )
        if execute_steps is not None and not 1 <= execute_steps <= most:
            raise ConfigError(
                f"execute_steps is {execute_steps}: plans have {self.horizon} steps, of which "
                f"{most} are ahead. Give 1 to {most}."
            )

    # ---- acting --------------------------------------------------------------------------------

    def draw(
        self,
        denoise: Denoise,
        values: Tensor,
        known: Tensor,
        move: Callable[[Tensor, Step, Callable[[Tensor], Tensor]], Tensor] | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Draw plans (S, H, e), in normalised units, that agree with what is known to the bit.

        Args:
            denoise: The U-net under its condition.
            values: Plans (S, H, e), of which only the known part is read.
            known: What is known of them, bool (S, H, e).
            move: Moves plans before a step of the sampler; it is given x_t, the step, and what
                fixes the known part again.
            temperature: Factor of the sampler's noise; as built if None.
        """
        sampler = self.sampler
        if temperature is not None:
            sampler = replace(sampler, temperature=temperature)

        def fix(x: Tensor) -> Tensor:
            return torch.where(known, values, x)

        def before(x: Tensor, step: Step) -> Tensor:
            return fix(x) if move is None else move(fix(x), step, fix)

        drawn = sampler.sample(
            denoise,
            self.schedule,
            values.shape,
            prediction=self.prediction,
            device=values.device,
            dtype=values.dtype,
            before=before,
        )
        return fix(drawn)

    def begun(
        self, seen: Tensor, counts: Tensor, goals: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return normalised plans (S, H, e) of which only a part is known, and which (S, H, e).

        Args:
            seen: Raw observations (S, C, o), the oldest first.
            counts: How many of them there are (S,), int64.
            goals: Raw goals (S, g), if there are ``goal_dims``.
        """
        known = self.known_of(counts)
        values = torch.zeros_like(known, dtype=seen.dtype)
        observations = values[..., self.event_dim - self.observation_dim :]
        observations[:, : seen.shape[1]] = self.normalizer.normalize(seen)
        if goals is not None:
            last = torch.zeros_like(seen[:, 0])
            last[:, self.goal_dims] = goals
            observations[:, -1, self.goal_dims] = self.normalizer.normalize(last)[:, self.goal_dims]
        return values, known

    def ahead(self, plans: Tensor, counts: Tensor, steps: int) -> Tensor:
        """Return ``steps`` steps of plans (S, H, e) from the current one on, in raw units."""
        index = counts[:, None] - 1 + torch.arange(steps, device=counts.device)
        index = index.clamp(max=self.horizon - 1)[..., None].expand(-1, -1, self.event_dim)
        plans = plans.gather(1, index)
        sizes = (self.event_dim - self.observation_dim, self.observation_dim)
        actions, observations = plans.split(sizes, dim=-1)
        observations = self.normalizer.denormalize(observations)
        if not self.with_actions:
            return observations
        return torch.cat([self.action_normalizer.denormalize(actions), observations], dim=-1)

    def plan_policy(
        self,
        plan: Callable[..., Tensor],
        follow: Follow,
        execute_steps: int | None,
        goal: Goal,
        number: int = 1,
    ) -> PlanPolicy:
        """Make a policy that plans and follows.

        Args:
            plan: Maps observations (S, C, o), their numbers (S,), int64, and where there are
                ``goal_dims`` goals (S, g), to plans (S, H, e) in normalised units.
            follow: How a step of a plan becomes an action.
            execute_steps: Number of steps for which a plan is followed; None never plans again.
            goal: Where to go, where there are ``goal_dims``.
            number: Plans that are drawn for a state.

        Raises:
            ConfigError: A plan does not have that many steps, or the goal cannot be.
        """
        self.require_steps(execute_steps)
        steps = self.horizon if execute_steps is None else execute_steps + 1
        some = max(1, _ROWS // number)

        def choose(now: Tensor, seen: Tensor, counts: Tensor, *goals: Tensor) -> Tensor:
            if given_noise() is not None:  # whose numbers are for all states at once
                return self.ahead(plan(seen, counts, *goals), counts, steps)
            parts = zip(*(part.split(some) for part in (seen, counts, *goals)), strict=True)
            return torch.cat([self.ahead(plan(*part), part[1], steps) for part in parts])

        def clipped(*parts: Tensor) -> Tensor:
            return torch.minimum(torch.maximum(follow(*parts), self.low), self.high)

        how = (choose, clipped, execute_steps, self.device)
        if not self.goal_dims:
            return PlanPolicy(*how, history=self.history)
        dims = self.goal_dims
        return GoalPlanPolicy(*how, history=self.history, goal_dims=dims, goal=goal)

    def predict_step(self, batch: WindowBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return actions (B, a) in the first states of windows, towards where those end."""
        observations, policy = batch.observations.cpu(), self.policy()
        if isinstance(policy, GoalPlanPolicy):
            policy.aim(observations[:, -1, list(self.goal_dims)].numpy())
        acted = policy.act(observations[:, 0].numpy())
        return {"observations": observations[:, 0], "actions": torch.from_numpy(acted)}
