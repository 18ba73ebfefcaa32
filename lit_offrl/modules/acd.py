"""Advantage-conditioned diffusion (ACD): imitate under advantages, act at advantage zero.

Source: "Advantage-conditioned diffusion: offline RL via generalization" (anonymous submission).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.labels import critic_hash, load_labels
from lit_offrl.datasets.views import (
    AdvantageBatch,
    AdvantageLabelled,
    TransitionBatch,
    Transitions,
    View,
)
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.modules.diffusion_actor import DiffusionActorModule
from lit_offrl.modules.expectile import best_of
from lit_offrl.modules.frozen_critics import LabelledBy, load_critics
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import AdvantageEncoding, frozen_copy, polyak_update_

ActMode = Literal["acd", "acd_f"]
_MODES = ("acd", "acd_f")


class ACDModule(DiffusionActorModule, CriticGuidedModule):
    """A diffusion policy conditioned on IQL's advantages, acting at A = 0 (sections 4.2 to 4.4).

    The advantage is hidden with probability ``drop_probability``, the state never, so that one
    network is the conditional and the unconditional model. Sampling is guided by
    ε = (1 + ω) ε(A) − ω ε(∅) (Eq. 4): ω = −1 is the unconditional model, 0 the conditional one.

    Departures from the paper: its Eq. 2 prints 1/α where 1/√α is right; advantages are those of
    the target critics' minimum, as IQL has them; DDPM's noise has variance β, and each step clips
    its estimate of the action where IDQL's code clips the noisy one.

    Args:
        act_mode: ``acd`` acts by one sample; ``acd_f`` by the best of ``num_samples`` by the
            target critics (section 4.4).
        omega: Strength ω of the guidance, any finite number.
        drop_probability: Probability in [0, 1] with which an advantage is hidden in training.
        num_samples: Number N of candidates of ``acd_f``, at least 1.
        representation: How A is given to the network (Table 3).
        advantage_scale: Positive number that divides A before it is given.
        bins: Odd number of bins of ``one_hot``.
        bin_width: Width of a bin, above 0, in units of A / ``advantage_scale``.
        guidance: ``classifier_free``, or ``classifier``: an unconditional model, which is trained
            without advantages, pushed along ∇_a Q by ``omega`` (end of section 4.3).
        labels: ``joint`` labels each batch by the critics of that step (Algorithm 1);
            ``precomputed`` takes frozen critics and labels all rows once (Eq. 3).
        critic: Checkpoint of an IQLModule, or any method with its critics, for precomputed labels.
        weight_decay: AdamW's decay of the weights of denoiser and encoding, at least 0; 0 is Adam.
        **kwargs: Options of ``DiffusionActorModule`` and ``CriticGuidedModule``; the average of a
            learned representation moves at ``actor_ema_rate``, too.

    Raises:
        ConfigError: The data have no actions, options contradict each other, or a number is out of
            its range.
    """

    encoding: AdvantageEncoding

    def __init__(
        self,
        *args: Any,
        act_mode: ActMode = "acd",
        omega: float = 3.0,
        drop_probability: float = 0.1,
        num_samples: int = 64,
        representation: Literal["raw", "one_hot", "sinusoidal", "learned"] = "raw",
        advantage_scale: float = 1.0,
        bins: int = 41,
        bin_width: float = 0.25,
        guidance: Literal["classifier_free", "classifier"] = "classifier_free",
        labels: Literal["joint", "precomputed"] = "joint",
        critic: str | None = None,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, weight_decay=weight_decay, **kwargs)
        require_in("[0, 1]", drop_probability=drop_probability)
        require_in("(-inf, inf)", omega=omega)
        require_in("[1, inf)", num_samples=num_samples)
        if (labels == "precomputed") != (critic is not None):
            raise ConfigError(
                f"labels is '{labels}' and critic is {critic}: precomputed labels need a critic's "
                "checkpoint, joint ones train their own."
            )
        self.act_mode, self.omega, self.num_samples = act_mode, omega, num_samples
        self.guidance = guidance
        # The classifier's guidance takes an unconditional model alone, so it learns no other.
        self.drop_probability = 1.0 if guidance == "classifier" else drop_probability
        self.frozen_from = critic
        self.encoding = AdvantageEncoding(
            representation, scale=advantage_scale, bins=bins, bin_width=bin_width
        )
        self.average_encoding = frozen_copy(self.encoding)
        self.actor = self.diffusion_actor(self.observation_dim + self.encoding.dim)
        if critic is not None:
            self.critics.requires_grad_(False)

    # ---- training ------------------------------------------------------------------------------

    def view(self) -> View:
        """``Transitions``; with precomputed labels those of the frozen critics beside them."""
        if self.frozen_from is None:
            return Transitions()
        # the run's own checkpoint has them, too, and the other may have gone
        load_critics(self, self.resumed_from or self.frozen_from)
        return LabelledBy(self)

    def setup(self, stage: str) -> None:
        """As every method; where the user chose the view, its labels must be the critics' own.

        Raises:
            ConfigError: the critics' checkpoint cannot be used.
            DatasetError: the labels are of other critics.
        """
        view = getattr(self.datamodule, "view", None)
        # view() has loaded them, where it was called
        if self.frozen_from is not None and stage == "fit" and not isinstance(view, LabelledBy):
            load_critics(self, self.resumed_from or self.frozen_from)
            if isinstance(view, AdvantageLabelled):
                made_by = critic_hash(self.critics.state_dict())
                load_labels(Path(view.labels), self.datamodule.dataset, made_by)
        super().setup(stage)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The actor with the advantage's encoding, and the critics unless they are frozen."""
        groups = super().parameter_groups()
        groups["actor"] += list(self.encoding.parameters())
        return groups if self.frozen_from is None else {"actor": groups["actor"]}

    def losses(self, batch: TransitionBatch | AdvantageBatch) -> dict[str, Tensor]:
        """The actor's loss and, unless labels are precomputed, the critics'.

        Raises:
            ConfigError: the view does not give what ``labels`` needs.
        """
        if self.frozen_from is None:
            return super().losses(batch)
        if not isinstance(batch, AdvantageBatch):
            raise ConfigError(
                f"labels is 'precomputed', but the view gives a {type(batch).__name__}: leave the "
                "view to the model, or set it to AdvantageLabelled."
            )
        observations = self.normalize_observations(batch.observations)
        return {"actor": self.actor_loss(observations, batch.actions, batch.advantages)}

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """Denoising loss with the advantage hidden at random, the state never."""
        given = self.noise.uniform(advantages.shape) >= self.drop_probability
        condition = torch.cat([observations, self.encoding(advantages, given)], dim=-1)
        return self.actor.loss(condition, actions, self.noise).mean()

    def after_step(self) -> None:
        """Move the averages; frozen critics stay."""
        if self.frozen_from is None:
            super().after_step()
        else:
            self.actor.update_ema()
        polyak_update_(self.average_encoding, self.encoding, self.actor.ema_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the frozen critics' checkpoint too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["critic"] = self.frozen_from

    # ---- acting --------------------------------------------------------------------------------

    def policy(
        self,
        act_mode: ActMode | None = None,
        omega: float | None = None,
        num_samples: int | None = None,
        advantage: float = 0.0,
    ) -> NetworkPolicy:
        """Act by samples at one advantage; what is not given is as trained.

        Args:
            act_mode: ``acd`` or ``acd_f``.
            omega: ω.
            num_samples: N of acd_f.
            advantage: A, 0 being that of an optimal action.

        Raises:
            ConfigError: unknown mode, or a number out of its range.
        """
        mode = self.act_mode if act_mode is None else act_mode
        if mode not in _MODES:
            raise ConfigError(
                f"act_mode is '{mode}': choose from {', '.join(_MODES)}.{nearest(mode, _MODES)}"
            )
        number = self.num_samples if num_samples is None else num_samples
        require_in("[1, inf)", num_samples=number)
        strength = self.omega if omega is None else omega
        require_in("(-inf, inf)", omega=strength, advantage=advantage)

        def act(rows: Tensor) -> Tensor:
            if mode == "acd":
                return self.sample_actions(rows, 1, strength, advantage).squeeze(1)
            candidates = self.sample_actions(rows, number, strength, advantage)
            return best_of(self.critics.target, self.normalize_observations(rows), candidates)

        return NetworkPolicy(act, self.device)

    def sample_actions(
        self, observations: Tensor, number: int, omega: float, advantage: float = 0.0
    ) -> Tensor:
        """Draw actions (S, number, a) for raw observations (S, o) under Eq. 4."""
        states = self.normalize_observations(observations)
        advantages = torch.full((len(states),), float(advantage), device=states.device)
        given = torch.cat([states, self.average_encoding(advantages)], dim=-1)
        absent = torch.cat([states, self.encoding.absent(len(states), states)], dim=-1)
        if self.guidance == "classifier":
            rows = states.repeat_interleave(number, dim=0)
            return self.actor.sample(
                absent,
                number=number,
                log_density=lambda actions: self.critics.target.minimum(rows, actions),
                density_scale=omega,
            )
        return self.actor.sample(given, number=number, absent=absent, guidance=1.0 + omega)
