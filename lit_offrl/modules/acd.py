"""Advantage-conditioned diffusion (ACD): imitate under advantages, act at advantage zero.

Source: "Advantage-conditioned diffusion: offline RL via generalization" (anonymous submission).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.policy import Policy
from lit_offrl.diffusion import Sampler
from lit_offrl.modules.conditions import ConditionModule
from lit_offrl.modules.diffusion_actor import DiffusionActorModule
from lit_offrl.modules.expectile import best_of
from lit_offrl.nets import AdvantageEncoding, frozen_copy, polyak_update_

ActMode = Literal["acd", "acd_f"]


class ACDModule(DiffusionActorModule, ConditionModule):
    """A diffusion policy conditioned on IQL's advantages, acting at A = 0 (sections 4.2 to 4.4).

    The advantage is hidden with probability ``drop_probability``, the state never, so that one
    network is the conditional and the unconditional model. Sampling is guided by
    ε = (1 + ω) ε(A) − ω ε(∅) (Eq. 4): ω = −1 is the unconditional model, 0 the conditional one.

    As in IDQL's code, on which the authors build, each of DDPM's steps clips the noisy action and
    has noise of variance β. If the estimate of the action is clipped instead, IDQL's score on
    hopper-mixed falls from 112 to 30 with N = 64 (docs/results/acd.md).

    Departures from the paper: its Eq. 2 prints 1/α where 1/√α is right; advantages are those of
    the smaller of the two target critics, as in IQL.

    Args:
        act_mode: ``acd`` executes one sample; ``acd_f`` the best of ``num_samples`` samples by the
            target critics (section 4.4).
        omega: Strength ω of the guidance, any finite number.
        drop_probability: Probability in [0, 1] with which training replaces an advantage by the
            null token.
        num_samples: Number N of candidates of ``acd_f``, at least 1.
        representation: How A is represented as an input of the network (Table 3).
        advantage_scale: Positive number by which A is divided before it is represented.
        bins: Number of bins of ``one_hot``, which is odd.
        bin_width: Width of a bin, above 0, in units of A / ``advantage_scale``.
        guidance: ``classifier_free``, or ``classifier``: an unconditional model, trained without
            advantages, is pushed along ∇_a Q by ``omega`` (end of section 4.3).
        weight_decay: AdamW's decay of the weights of the denoiser and of the encoding, at least 0;
            0 is Adam.
        **kwargs: Options of ``DiffusionActorModule`` and ``ConditionModule``; the average of a
            learned representation moves at ``actor_ema_rate``, too.

    Raises:
        ConfigError: Values of returns are to choose or to push actions, which takes a Q.
    """

    eager_because = None
    encoding: AdvantageEncoding

    def __init__(
        self,
        *args: Any,
        act_mode: ActMode = "acd",
        omega: Annotated[float, "(-inf, inf)"] = 3.0,
        drop_probability: Annotated[float, "[0, 1]"] = 0.1,
        num_samples: Annotated[int, "[1, inf)"] = 64,
        representation: Literal["raw", "one_hot", "sinusoidal", "learned"] = "raw",
        advantage_scale: float = 1.0,
        bins: int = 41,
        bin_width: float = 0.25,
        guidance: Literal["classifier_free", "classifier"] = "classifier_free",
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, weight_decay=weight_decay, **kwargs)
        self.act_mode, self.omega, self.num_samples = act_mode, omega, num_samples
        self.guidance = guidance
        self._require_q("act_mode 'acd_f'", act_mode == "acd_f")
        self._require_q("guidance 'classifier'", guidance == "classifier")
        # The classifier's guidance takes an unconditional model alone, so it learns no other.
        self.drop_probability = 1.0 if guidance == "classifier" else drop_probability
        self.encoding = AdvantageEncoding(
            representation, scale=advantage_scale, bins=bins, bin_width=bin_width
        )
        self.average_encoding = frozen_copy(self.encoding)
        self.actor = self.diffusion_actor(self.observation_dim + self.encoding.dim)

    def _require_q(self, what: str, wanted: bool) -> None:
        if wanted and self.values == "returns":
            raise ConfigError(
                f"{what} needs a Q, which values 'returns' have not: leave it out, or set values "
                "to 'expectile'."
            )

    # ---- training ------------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The actor with the advantage's encoding, and the critics unless they are frozen."""
        groups = super().parameter_groups()
        groups["actor"] += list(self.encoding.parameters())
        return groups

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """Denoising loss with the advantage hidden at random, the state never."""
        given = self.noise.uniform(advantages.shape) >= self.drop_probability
        condition = torch.cat([observations, self.encoding(advantages, given)], dim=-1)
        return self.actor.loss(condition, actions, self.noise).mean()

    def after_step(self) -> None:
        """Move the averages; frozen critics stay."""
        super().after_step()
        polyak_update_(self.average_encoding, self.encoding, self.actor.ema_rate)

    # ---- acting --------------------------------------------------------------------------------

    def policy(
        self,
        act_mode: ActMode | None = None,
        omega: Annotated[float | None, "(-inf, inf)"] = None,
        num_samples: Annotated[int | None, "[1, inf)"] = None,
        advantage: Annotated[float | None, "(-inf, inf)"] = None,
        *,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
        **drawing: Any,
    ) -> Policy:
        """Act by samples at one advantage; what is not given is as trained.

        Args:
            act_mode: ``acd`` or ``acd_f``.
            omega: Guidance weight ω.
            num_samples: N of acd_f.
            advantage: Advantage A for which the policy acts. By default it is 0, that of an optimal
                action; with ``condition: positive`` it is 1 by default, for an action of positive
                advantage, and −1 stands for any other.
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
            **drawing: Options of ``Drawing``; those that are None or left out are as trained.

        Raises:
            ConfigError: ``acd_f`` of values that have no Q.
        """
        sampler = self.acting_sampler(**drawing)
        mode = act_mode or self.act_mode
        self._require_q("act_mode 'acd_f'", mode == "acd_f")
        number = 1 if mode == "acd" else num_samples or self.num_samples
        strength = self.omega if omega is None else omega

        def act(rows: Tensor) -> Tensor:
            candidates = self.sample_actions(rows, number, strength, advantage, sampler)
            if mode == "acd":
                return candidates.squeeze(1)
            return best_of(self.critics.target, self.normalize_observations(rows), candidates)

        return self.acting(act, execute_steps)

    def sample_actions(
        self,
        observations: Tensor,
        number: int,
        omega: float,
        advantage: float | None = None,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Draw actions (S, number, a) for raw observations (S, o) under Eq. 4."""
        if advantage is None:
            advantage = 1.0 if self.condition == "positive" else 0.0
        states = self.normalize_observations(observations)
        advantages = torch.full((states.shape[0],), float(advantage), device=states.device)
        given = torch.cat([states, self.average_encoding(advantages)], dim=-1)
        absent = torch.cat([states, self.encoding.absent(states.shape[0], states)], dim=-1)
        if self.guidance == "classifier":
            rows = states.repeat_interleave(number, dim=0)
            return self.actor.sample(
                absent,
                number=number,
                log_density=lambda actions: self.critics.target.minimum(rows, actions),
                density_scale=omega,
                sampler=sampler,
            )
        return self.actor.sample(
            given, number=number, absent=absent, guidance=1.0 + omega, sampler=sampler
        )
