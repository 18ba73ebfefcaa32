"""Implicit diffusion Q-learning (IDQL): IQL's critics choose among a diffusion model's actions."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from lit_offrl.common.policy import Policy
from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.modules.diffusion_actor import DiffusionActorModule


class IDQLModule(DiffusionActorModule, CriticGuidedModule):
    """IDQL (Hansen-Estruch et al. 2023): imitation by diffusion, the best of N samples acts.

    The network is ACD's without the advantage, so that the two can be compared. As in the authors'
    code each of DDPM's steps clips the noisy action and has noise of variance β.

    Departures from the authors' code are factors of losses, which hardly matter to Adam: the
    critics' loss is their sum and not their mean, and the denoising error is a mean over the
    action's dimensions and not a sum.

    Args:
        num_samples: Number N of candidates, at least 1, among which the target critics choose.
        weight_decay: AdamW's decay of the denoiser's weights, at least 0; 0 is Adam.
        **kwargs: Options of ``DiffusionActorModule`` and ``CriticGuidedModule``.
    """

    eager_because = None

    def __init__(
        self,
        *args: Any,
        num_samples: Annotated[int, "[1, inf)"] = 64,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, weight_decay=weight_decay, **kwargs)
        self.num_samples = num_samples
        self.actor = self.diffusion_actor(self.observation_dim)

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """The denoising loss; advantages play no part."""
        return self.actor.loss(observations, actions, self.noise).mean()

    def policy(
        self,
        num_samples: Annotated[int | None, "[1, inf)"] = None,
        *,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
        **drawing: Any,
    ) -> Policy:
        """Act by the best of N samples.

        Args:
            num_samples: N; the module's own by default.
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
            **drawing: Options of ``Drawing``; those that are None or left out are as trained.
        """
        number = num_samples or self.num_samples
        return self.best_of_samples(
            self.critics.target, number, execute_steps=execute_steps, **drawing
        )
