"""Decision Diffuser: states drawn for a return, and actions between them (Ajay et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lit_offrl.datasets.views import WindowBatch
from lit_offrl.diffusion import classifier_free_guidance
from lit_offrl.modules.plan_policy import PlanPolicy
from lit_offrl.modules.plans import PlanModule
from lit_offrl.modules.skill_policy import Goal
from lit_offrl.nets import MLP, TemporalUNet, frozen_copy
from lit_offrl.nets.mlp import require_widths


class DecisionDiffuserModule(PlanModule):
    """Plans states for a return by classifier-free guidance, and acts by inverse dynamics.

    ε̂ = ε(∅) + w (ε(R) − ε(∅)) for the return R of the data's windows, scaled to [0, 1], which
    training drops with ``drop_probability`` (Eq. 7 and 8); the noise of the sampler is multiplied
    by ``temperature`` (Algorithm 1). The action is f(s_t, s_{t+1}), learned from the data's steps.

    Departures from the paper and its code: observations and actions are scaled by their range
    (code: by their empirical distribution); returns by the range of the training windows (code: a
    number for each dataset); the first C states of a training window are known, C drawn from 1 …
    ``history``, where the paper plans with a history of C states and its code with C = 1.

    Args:
        history: Largest number C of known observations at the start of a plan, of which the last is
            the current one; at least 1, and below the horizon.
        guidance: Weight w of the guidance; 1 is the conditional model alone.
        drop_probability: Probability in [0, 1] with which a return is dropped in training.
        target_return: Return that plans are drawn for; 1 is the largest return of the training
            windows.
        inverse_hidden: Widths of the inverse dynamics' hidden layers.
        execute_steps: Number of environment steps for which a plan is followed before a new one is
            drawn.
        horizon: Number H of steps of a plan, a multiple of 2^(L − 1) for L levels of the U-net.
        normalize: How observations and actions are scaled: ``min_max`` from the range of the data
            to [−1, 1], ``mean_std`` to mean 0 and standard deviation 1.
        width: Channels of the U-net's first level.
        multipliers: Channels of the levels as multiples of ``width``.
        prediction: What the U-net predicts.
        diffusion_steps: Number T of diffusion steps.
        clip: Bound, above 0, of the estimate of a plan in each step of the sampler; ``null`` sets
            none.
        temperature: Factor, at least 0, of the sampler's noise.
        **kwargs: Further options of ``PlanModule``.

    Raises:
        ConfigError: The data have no actions, or a number is out of its range.
    """

    eager_because = None
    with_actions = False
    low_return: Tensor
    high_return: Tensor

    def __init__(
        self,
        *args: Any,
        history: Annotated[int, "[1, inf)"] = 1,
        guidance: Annotated[float, "(-inf, inf)"] = 1.2,
        drop_probability: Annotated[float, "[0, 1]"] = 0.25,
        target_return: Annotated[float, "(-inf, inf)"] = 0.9,
        inverse_hidden: Sequence[int] = (256, 256),
        execute_steps: Annotated[int, "[1, inf)"] = 1,
        horizon: Annotated[int, "[2, inf)"] = 100,
        normalize: Literal["mean_std", "min_max"] = "min_max",
        width: int = 128,
        multipliers: Sequence[int] = (1, 4, 8),
        prediction: Literal["x0", "epsilon", "v"] = "epsilon",
        diffusion_steps: Annotated[int, "[1, inf)"] = 200,
        clip: Annotated[float | None, "(0, inf)"] = 1.0,
        temperature: Annotated[float, "[0, inf)"] = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            horizon=horizon,
            normalize=normalize,
            width=width,
            multipliers=multipliers,
            prediction=prediction,
            diffusion_steps=diffusion_steps,
            clip=clip,
            temperature=temperature,
            **kwargs,
        )
        self.history, self.drop_probability = history, drop_probability
        self.guidance, self.target_return = guidance, target_return
        self.execute_steps = execute_steps
        self.require_steps(execute_steps)
        require_widths(inverse_hidden, "inverse_hidden")
        sizes = (self.event_dim, horizon, diffusion_steps)
        self.denoiser = TemporalUNet(*sizes, condition_dim=1, **self.sizes)
        self.inverse = MLP(2 * self.observation_dim, tuple(inverse_hidden), self.action_dim)
        self.average, self.average_inverse = frozen_copy(self.denoiser), frozen_copy(self.inverse)
        self.register_buffer("low_return", torch.zeros(()))
        self.register_buffer("high_return", torch.ones(()))

    # ---- training ------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Take the range of the returns from the training data."""
        returns = self.returns_of_training()
        if returns is not None:
            self.low_return.copy_(returns.min())
            self.high_return.copy_(returns.max())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The U-net, and the inverse dynamics."""
        nets = {"plan": self.denoiser, "inverse": self.inverse}
        return {name: list(net.parameters()) for name, net in nets.items()}

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """The U-net, and the inverse dynamics."""
        return [(self.denoiser, self.average), (self.inverse, self.average_inverse)]

    def losses(self, batch: WindowBatch) -> dict[str, Tensor]:
        """``plan``: the denoising error; ``inverse``: the squared error of the data's actions."""
        self.require_windows(batch, returns=True)
        windows = self.scaled(batch)
        returns = self.scaled_returns(batch.returns)
        rows, device = len(windows), windows.device
        counts = torch.ones(1, dtype=torch.int64, device=device)
        if self.history > 1:
            counts = self.noise.integers(1, self.history + 1, (rows,))
        given = self.noise.uniform((rows, 1)) >= self.drop_probability
        encoded = self.denoiser.encode(returns[:, None]) * given
        loss = self.plan_loss(self.denoiser, windows, self.known_of(counts), encoded)
        return {"plan": loss.mean(), "inverse": self.inverse_loss(windows, batch)}

    def scaled_returns(self, returns: Tensor | None) -> Tensor:
        """Return returns (B,) of windows scaled to [0, 1]."""
        assert returns is not None  # require_windows has refused others
        span = (self.high_return - self.low_return).clamp(min=1e-6)
        return (returns - self.low_return) / span

    def inverse_loss(self, windows: Tensor, batch: WindowBatch) -> Tensor:
        """Mean squared error of the actions between the real steps of windows (B, H, o)."""
        pairs = torch.cat([windows[:, :-1], windows[:, 1:]], dim=-1)
        actions = self.action_normalizer.normalize(batch.actions[:, :-1])
        error = (self.inverse(pairs).to(actions.dtype) - actions).square()
        return (error * batch.mask[:, 1:, None]).mean()

    # ---- acting --------------------------------------------------------------------------------

    def plans(
        self,
        seen: Tensor,
        counts: Tensor,
        goals: Tensor | None = None,
        *,
        target_return: float,
        guidance: float,
        temperature: float | None = None,
    ) -> Tensor:
        """Draw plans (S, H, o) in normalised units.

        Args:
            seen: Raw observations (S, C, o), the oldest first.
            counts: How many of them there are (S,), int64.
            goals: Raw goals (S, g), if there are ``goal_dims``.
            target_return: The return, in [0, 1] what the data have.
            guidance: Weight w.
            temperature: Factor of the sampler's noise; as built if None.
        """
        values, known = self.begun(seen, counts, goals)
        net = self.average
        encoded = net.encode(values.new_full((1, 1), target_return)).expand(seen.shape[0], -1)
        step = partial(net.denoise, times=net.times())
        null = torch.zeros_like(encoded[:1])
        denoise = classifier_free_guidance(
            lambda x, t, shares: step(x, t, shares), encoded, null, guidance
        )
        return self.draw(denoise, values, known, temperature=temperature)

    def policy(
        self,
        target_return: Annotated[float | None, "(-inf, inf)"] = None,
        guidance: Annotated[float | None, "(-inf, inf)"] = None,
        temperature: Annotated[float | None, "[0, inf)"] = None,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
        goal: Goal = "environment",
    ) -> PlanPolicy:
        """Act by plans; what is not given is as trained.

        Args:
            target_return: Return that plans are drawn for.
            guidance: Weight w.
            temperature: Factor of the sampler's noise.
            execute_steps: Number of steps for which a plan is followed.
            goal: Where to go, if there are ``goal_dims``: one number for each of them, or
                ``environment`` for the ``info["goal"]`` that the environment gives at each reset.
        """
        options: dict[str, Any] = {
            "target_return": self.target_return if target_return is None else target_return,
            "guidance": self.guidance if guidance is None else guidance,
            "temperature": temperature,
        }

        def follow(now: Tensor, step: Tensor, following: Tensor, ended: Tensor) -> Tensor:
            pair = [self.normalizer.normalize(part) for part in (now, following)]
            return self.action_normalizer.denormalize(self.average_inverse(torch.cat(pair, -1)))

        steps = execute_steps or self.execute_steps
        return self.plan_policy(partial(self.plans, **options), follow, steps, goal)
