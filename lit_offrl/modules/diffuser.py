"""Diffuser: planning by drawing windows of states and actions (Janner et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import draw_normal, draw_times
from lit_offrl.datasets.views import WindowBatch
from lit_offrl.diffusion.guidance import row_gradient
from lit_offrl.diffusion.samplers import Step
from lit_offrl.modules.plan_policy import Controller, PlanPolicy
from lit_offrl.modules.plans import PlanModule
from lit_offrl.modules.skill_policy import Goal
from lit_offrl.nets import TemporalUNet, TemporalValue, frozen_copy


class DiffuserModule(PlanModule):
    """Plans windows of actions and states, guided to high returns by the gradient of a value.

    Before each step of the sampler a noisy plan is moved ``guide_steps`` times by ``guide_scale`` ·
    σ² · ∇V(x_t, t) (Algorithm 1 and the authors' code), where σ² is the variance of the step's
    noise and V a value of noisy windows, which is regressed at the same time on the return from the
    window's first step on. Of ``num_samples`` plans the one with the largest value is followed.
    With ``goal_dims`` the plan's end is fixed, too (inpainting, section 3.3).

    Departures from the paper and its code: the value is learned with mean 0 and standard deviation
    1, and scaled back, so that one learning rate fits all rewards and ``guide_scale`` is for
    returns as in the code; gradients of steps that do not use them are not computed; candidates are
    compared when they are finished (code: before the last step); in maze2d windows do not go on
    past a timeout (code: they do, from one visit of the goal to the next), and the velocity at the
    goal is the plan's (code: 0); the U-net has no attention, which the code has in halfcheetah.

    Args:
        action_weight: Weight of the first action's error, at least 0.
        guided: Whether a value is trained, which needs rewards, and guides the plans.
        num_samples: Number of plans, at least 1, of which the one with the largest value is
            followed.
        guide_scale: Scale of the guidance, any finite number; 0 switches it off.
        guide_steps: Number of guidance steps before each step of the sampler, at least 0. One
            guidance step at twice the scale differs from the authors' two steps only to second
            order in the scale. Planning with 64 candidates then takes two thirds of the time.
        guide_stop: Number of the last diffusion times, at least 0, at which plans are not guided.
        execute_steps: Number of environment steps for which a plan is followed before a new one is
            drawn; ``null`` never draws a new one.
        controller: How actions are chosen: ``actions`` executes the plan's actions, ``waypoints``
            heads for its next state. The latter adds the difference of the positions and that of
            the velocities, as in the authors' code for maze2d, and so needs observations that
            consist of both.
        **kwargs: Options of ``PlanModule``.

    Raises:
        ConfigError: The data have no actions, or a number is out of its range.
    """

    eager_because = None
    return_mean: Tensor
    return_std: Tensor

    def __init__(
        self,
        *args: Any,
        action_weight: Annotated[float, "[0, inf)"] = 10.0,
        guided: bool = True,
        num_samples: Annotated[int, "[1, inf)"] = 64,
        guide_scale: Annotated[float, "(-inf, inf)"] = 0.1,
        guide_steps: Annotated[int, "[0, inf)"] = 2,
        guide_stop: Annotated[int, "[0, inf)"] = 2,
        execute_steps: Annotated[int | None, "[1, inf)"] = 1,
        controller: Controller = "actions",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.guided, self.num_samples = guided, num_samples
        self.guide_scale, self.guide_steps, self.guide_stop = guide_scale, guide_steps, guide_stop
        self.execute_steps, self.controller = execute_steps, controller
        self._require(controller, execute_steps)
        self.require_steps(execute_steps)
        self.weights[0, : self.action_dim] = action_weight
        sizes = (self.event_dim, self.horizon, self.schedule.num_steps)
        self.denoiser = TemporalUNet(*sizes, **self.sizes)
        self.average = frozen_copy(self.denoiser)
        self.value: TemporalValue | None = None
        if guided:
            self.value = TemporalValue(*sizes, **self.sizes)
            self.average_value = frozen_copy(self.value)
        self.register_buffer("return_mean", torch.zeros(()))
        self.register_buffer("return_std", torch.ones(()))

    def _require(self, controller: Controller, steps: int | None) -> None:
        """Refuse a way to follow plans that observations, or plans' ends, do not allow."""
        size, actions = self.observation_dim, self.action_dim
        if controller == "waypoints" and size != 2 * actions:
            raise ConfigError(
                "controller is 'waypoints', for observations of a position and a velocity for each "
                f"action: these have {size} numbers for {actions}. Take 'actions'."
            )
        if controller == "actions" and steps is None:
            raise ConfigError(
                "a plan that is followed to its end and never made anew (execute_steps) needs the "
                "controller 'waypoints', which stays there."
            )

    # ---- training ------------------------------------------------------------------------------

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which it cannot be trained: rewards only for a guide."""
        return ("actions", "rewards") if self.guided else ("actions",)

    missing_columns_advice = (
        "Choose a dataset that has it, or for rewards set model.init_args.guided to false."
    )

    def on_fit_start(self) -> None:
        """Take mean and standard deviation of the returns from the training data."""
        returns = self.returns_of_training() if self.guided else None
        if returns is not None:
            self.return_mean.copy_(returns.double().mean())
            self.return_std.copy_(returns.double().std(correction=0).clamp(min=1e-3))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The U-net, and the value."""
        groups = {"plan": list(self.denoiser.parameters())}
        return groups if self.value is None else groups | {"value": list(self.value.parameters())}

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """The U-net, and the value."""
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.denoiser, self.average)]
        return pairs if self.value is None else [*pairs, (self.value, self.average_value)]

    def losses(self, batch: WindowBatch) -> dict[str, Tensor]:
        """``plan``: the weighted denoising error; ``value``: the squared error of the return."""
        self.require_windows(batch, returns=self.guided)
        windows = self.scaled(batch)
        known = self.known_of(torch.ones(1, dtype=torch.int64, device=windows.device))
        losses = {"plan": self.plan_loss(self.denoiser, windows, known).mean()}
        if self.value is not None and batch.returns is not None:
            losses["value"] = self.value_loss(self.value, windows, known, batch.returns).mean()
        return losses

    def value_loss(
        self, value: TemporalValue, windows: Tensor, known: Tensor, returns: Tensor
    ) -> Tensor:
        """Squared error (B,) of noisy windows' returns (B,), in standard deviations."""
        t = draw_times(len(windows), self.schedule.num_steps, self.noise, device=windows.device)
        noise = draw_normal(windows.shape, self.noise, device=windows.device, dtype=windows.dtype)
        x_t = torch.where(known, windows, self.schedule.q_sample(windows, t, noise))
        target = (returns - self.return_mean) / self.return_std
        return (value(x_t, t).to(target.dtype) - target).square()

    # ---- acting --------------------------------------------------------------------------------

    def plans(
        self,
        seen: Tensor,
        counts: Tensor,
        goals: Tensor | None = None,
        *,
        number: int,
        guide_scale: float,
    ) -> Tensor:
        """Draw plans (S, number, H, e) in normalised units, the best by the value first.

        Args:
            seen: Raw observations (S, 1, o).
            counts: Ones (S,), int64.
            goals: Raw goals (S, g), if there are ``goal_dims``.
            number: Number of plans of each state.
            guide_scale: Scale of the guide; 0 does not move plans.
        """
        begun = self.begun(seen, counts, goals)
        values, known = (part.repeat_interleave(number, dim=0) for part in begun)
        denoise = partial(self.average.denoise, times=self.average.times())
        guided = self.guided and guide_scale != 0 and self.guide_steps > 0
        drawn = self.draw(denoise, values, known, self.guide(guide_scale) if guided else None)
        plans = drawn.unflatten(0, (seen.shape[0], number))
        if not self.guided or number == 1:
            return plans
        first = torch.ones((), dtype=torch.int64, device=seen.device).expand(drawn.shape[0])
        order = (
            self.average_value(drawn, first).view(seen.shape[0], number).argsort(1, descending=True)
        )
        rows = torch.arange(order.shape[0], device=order.device)
        return plans[rows[:, None], order]

    def guide(self, scale: float) -> Callable[[Tensor, Step, Callable[[Tensor], Tensor]], Tensor]:
        """Return what moves noisy plans (B, H, e) along the value's gradient before a step."""
        value = self.average_value
        with torch.inference_mode(False):  # its tensors have no gradients
            times = value.times()
        unscaled = {step.t: step.noise**2 for step in self.sampler.steps(self.schedule)}
        scale = scale * float(self.return_std)

        def move(x: Tensor, step: Step, fix: Callable[[Tensor], Tensor]) -> Tensor:
            if step.t <= self.guide_stop:
                return x
            t = torch.full((1,), step.t, device=x.device).expand(x.shape[0])
            for _ in range(self.guide_steps):
                gradient = row_gradient(lambda at: value(at, t, times), x)
                x = fix(x + scale * unscaled[step.t] * gradient)
            return x

        return move

    def waypoint_action(self, now: Tensor, following: Tensor, ended: Tensor) -> Tensor:
        """Return actions (E, a) from observations (E, 2a) to the next states of the plans (E, 3a).

        The difference of the positions plus that of the velocities; 0 is the velocity at the end.
        """
        position, velocity = following.split(self.action_dim, dim=-1)[1:]
        velocity = velocity.masked_fill(ended[:, None], 0.0)
        return (torch.cat([position, velocity], dim=-1) - now).unflatten(-1, (2, -1)).sum(-2)

    def policy(
        self,
        num_samples: Annotated[int | None, "[1, inf)"] = None,
        guide_scale: Annotated[float | None, "(-inf, inf)"] = None,
        execute_steps: Annotated[int, "[1, inf)"] | Literal["all"] | None = None,
        controller: Controller | None = None,
        goal: Goal = "environment",
    ) -> PlanPolicy:
        """Act by plans; what is not given is as trained.

        Args:
            num_samples: Number of plans of which the best by the value is followed.
            guide_scale: Scale of the guide; 0 does not move plans.
            execute_steps: Number of environment steps for which a plan is followed before a new one
                is drawn; ``all`` never draws a new one, and the robot then stays at the plan's last
                state.
            controller: How a plan is followed.
            goal: Where to go, if there are ``goal_dims``: one number for each of them, or
                ``environment`` for the ``info["goal"]`` that the environment gives at each reset.
        """
        number = self.num_samples if num_samples is None else num_samples
        scale = self.guide_scale if guide_scale is None else guide_scale
        steps = self.execute_steps if execute_steps is None else execute_steps
        by_actions = (controller or self.controller) == "actions"
        self._require(controller or self.controller, None if steps == "all" else steps)

        def plan(*known: Tensor) -> Tensor:
            return self.plans(*known, number=number, guide_scale=scale)[:, 0]

        def follow(now: Tensor, step: Tensor, following: Tensor, ended: Tensor) -> Tensor:
            if by_actions:
                return step[:, : self.action_dim]
            return self.waypoint_action(now, following, ended)

        return self.plan_policy(plan, follow, None if steps == "all" else steps, goal, number)
