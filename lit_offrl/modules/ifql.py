"""Implicit flow Q-learning (IFQL): IQL's critics choose among a flow's actions."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from lit_offrl.common.policy import Policy
from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.modules.expectile import best_of
from lit_offrl.modules.flow_actor import FlowActor, FlowActorModule
from lit_offrl.nets import glorot_, polyak_update_


class IFQLModule(FlowActorModule, CriticGuidedModule):
    """IFQL (Park, Li & Levine 2025, appendix C): IDQL with a flow in place of diffusion.

    As in the authors' code, the trained flow and critics act, and not averages of them. Departures
    from it: the target critics follow the critics as they are after a step, not before it; actions
    are in units of half the width of the action range, which are the authors' units if the bounds
    are ±1.

    Args:
        num_samples: Number N of candidates, at least 1, among which the critics choose.
        expectile: Expectile in (0, 1) of the target critics' values that V is regressed on.
        **kwargs: Options of ``FlowActorModule`` and of ``CriticGuidedModule``.
    """

    eager_because = None
    actor: FlowActor

    def __init__(
        self,
        *args: Any,
        num_samples: Annotated[int, "[1, inf)"] = 32,
        expectile: Annotated[float, "(0, 1)"] = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, expectile=expectile, **kwargs)
        self.num_samples = num_samples
        self.actor = self.flow_actor()
        glorot_(self)
        polyak_update_(self.critics.target, self.critics.q, 1.0)

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """Flow matching's loss; advantages play no part."""
        return self.actor.loss(observations, actions, self.noise).mean()

    def policy(
        self,
        num_samples: Annotated[int | None, "[1, inf)"] = None,
        *,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
    ) -> Policy:
        """Act by the best of N samples of the flow.

        Args:
            num_samples: N; the module's own by default. A single sample needs no critic.
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
        """
        number = num_samples or self.num_samples

        def act(rows: Tensor) -> Tensor:
            observations = self.normalize_observations(rows)
            candidates = self.actor.sample(observations, number=number)
            if number == 1:
                return candidates.squeeze(1)
            return best_of(self.critics.q, observations, candidates)

        return self.acting(act, execute_steps)
