"""Diffused value functions (DVF): occupancy by diffusion × reward by regression = value.

Source: Mazoure et al., "Value function estimation using conditional diffusion models for control".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_offrl.datasets.views import FutureStateBatch, FutureStates
from lit_offrl.errors import ConfigError
from lit_offrl.modules.base import OfflineModule, read_checkpoint
from lit_offrl.modules.extraction import awr_loss, q_loss, reward_gradient_loss
from lit_offrl.modules.occupancy import History, OccupancyModel
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import DenseNetMLP, GaussianPolicy, symexp, symlog
from lit_offrl.randomness import ShardedGenerator, truncated_geometric


class DVFModule(OfflineModule):
    """A value from where the policy goes next and what is paid there; a policy from that value.

    Four networks, each trained by its own loss in one optimiser step (Algorithm 1):

    * ``occupancy``: ρ(s' | s, Δt, φ(π)), a diffusion model learned from states alone;
    * ``reward``: r(s, a), regressed in symlog space on the labelled rows;
    * ``q``: Q(s, a), regressed on r + γ (1 − terminal) V(s'), where V is made by sampling ρ;
    * ``actor``: the policy.

    Departures from the paper, each because its text contradicts itself or is silent:

    * states are scaled to [−1, 1], not [0, 1]: Algorithm 1's comment, not its formula;
    * V(s) is r(s, π(s)) plus γ/(1−γ) times the MEAN of r over samples; Algorithm 1 prints a sum
      and leaves the first reward out;
    * past a true terminal the state is absorbing and pays nothing (``terminals``);
    * Q is predicted as Q·(1−γ), the reward's own scale, so that one learning rate fits every γ;
    * Eq. 10 is divided by the mean |Q| of the batch, without which no fixed behaviour-cloning
      coefficient means the same in two environments.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action, 0 without actions; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        train: ``all`` networks together; ``occupancy`` alone (pre-training: neither rewards nor
            actions are needed); or ``heads``, everything but the occupancy.
        pretrained: checkpoint of a DVFModule whose occupancy model and normaliser to begin with.
        gamma: discount γ.
        terminals: ``absorbing`` (default), or ``truncate``, which treats a terminal as a time limit
            and so forgets that nothing is earned after it.
        max_offset: largest Δt, in training and in sampling; none by default. The rewards up to it
            then stand for all later ones.
        policy_representation: φ(π): ``sequential`` (the states before s), ``scalar`` (the data's
            ``policy`` column) or ``none``.
        history: number of preceding states of the sequential representation.
        history_actions: whether their actions belong to it too.
        width: width of the Perceiver IO.
        blocks: its number of blocks.
        heads: its heads, in cross- and in self-attention.
        latents: its number of latents; the paper does not give it.
        schedule: noise schedule.
        diffusion_steps: T.
        prediction: what the denoiser predicts.
        weighting: weight of the diffusion loss over diffusion times.
        ema_rate: rate of the averaged denoiser that is sampled from.
        sampler: sampler of ρ, in training and for values.
        sampling_steps: its steps; T gives the full chain.
        num_samples: n, states drawn for one value.
        hidden: widths of the DenseNet MLPs.
        extraction: ``q_net`` (Eq. 10 against the regressed Q), ``awr`` (likelihood weighted by
            exp(advantage)), or ``reward_grad``: Eq. 12 to the letter, in which the diffusion model
            cannot move the policy, kept to show just that.
        bc_coefficient: weight of the squared distance to the data's actions (q_net, reward_grad).
        awr_temperature: β of the weights exp(β · A / mean |A|), cut at 100.
        warmup_steps: optimiser steps before Q and the actor begin, while ρ and r settle.
        learning_rate: Adam's rate.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: options contradict each other or the data.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int = 0,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        train: Literal["all", "occupancy", "heads"] = "all",
        pretrained: str | None = None,
        gamma: float = 0.99,
        terminals: Literal["absorbing", "truncate"] = "absorbing",
        max_offset: int | None = None,
        policy_representation: Literal["sequential", "scalar", "none"] = "sequential",
        history: int = 8,
        history_actions: bool = False,
        width: int = 256,
        blocks: int = 8,
        heads: int = 4,
        latents: int = 64,
        schedule: Literal["cosine", "linear", "vp"] = "cosine",
        diffusion_steps: int = 128,
        prediction: Literal["epsilon", "x0", "v"] = "epsilon",
        weighting: Literal["uniform", "min_snr"] = "uniform",
        ema_rate: float = 0.005,
        sampler: Literal["dpm++", "ddim", "ddpm"] = "dpm++",
        sampling_steps: int = 10,
        num_samples: int = 32,
        hidden: Sequence[int] = (256, 256),
        extraction: Literal["q_net", "awr", "reward_grad"] = "q_net",
        bc_coefficient: float = 0.1,
        awr_temperature: float = 3.0,
        warmup_steps: int = 0,
        learning_rate: float = 3e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(observation_dim, learning_rate, seed)
        if not 0.0 <= gamma < 1.0:
            raise ConfigError(f"gamma is {gamma}; the occupancy needs 0 <= gamma < 1.")
        if num_samples < 1:
            raise ConfigError(f"num_samples is {num_samples}; a value needs at least 1 sample.")
        if train != "occupancy" and action_dim < 1:
            raise ConfigError(
                f"train is '{train}', which needs a dataset with actions and rewards; "
                "this one has no actions: set train to 'occupancy' to pre-train on states alone."
            )
        if train == "heads" and pretrained is None:
            raise ConfigError(
                "train is 'heads' without 'pretrained': name a checkpoint to build on."
            )
        sequential = policy_representation == "sequential"
        if sequential and history < 1:
            raise ConfigError("policy_representation 'sequential' needs history of at least 1.")
        self.save_hyperparameters()
        self.train_part = train
        self.pretrained = pretrained
        self.gamma = gamma
        self.terminals = terminals
        self.max_offset = max_offset
        self.policy_representation = policy_representation
        self.history = history if sequential else 0
        self.history_actions = sequential and history_actions
        self.num_samples = num_samples
        self.extraction = extraction
        self.bc_coefficient = bc_coefficient
        self.awr_temperature = awr_temperature
        self.warmup_steps = warmup_steps

        self.occupancy = OccupancyModel(
            observation_dim,
            action_dim if self.history_actions else 0,
            policy_representation=policy_representation,
            history=self.history,
            denoiser={
                "width": width,
                "blocks": blocks,
                "cross_heads": heads,
                "self_heads": heads,
                "latents": latents,
            },
            schedule=schedule,
            diffusion_steps=diffusion_steps,
            prediction=prediction,
            weighting=weighting,
            ema_rate=ema_rate,
            sampler=sampler,
            sampling_steps=sampling_steps,
        )
        self.reward = DenseNetMLP(observation_dim + action_dim, hidden, 1)
        self.q = DenseNetMLP(observation_dim + action_dim, hidden, 1)
        self.actor = (
            GaussianPolicy(
                observation_dim,
                action_dim,
                hidden=hidden,
                low=action_low,
                high=action_high,
                # past σ = 1 most actions are cut off at the bounds and the entropy is no longer that
                # of the policy, so that Eq. 10 would let σ grow without end
                log_std_range=(-5.0, 0.0),
            )
            if action_dim
            else nn.Identity()
        )
        trained = set(self.parameter_groups())
        for name in ("occupancy", "reward", "q", "actor"):
            if name not in trained:
                getattr(self, name).requires_grad_(False)

    # ---- what it needs from the data -----------------------------------------------------------

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which this part cannot be trained."""
        policy = ("policy",) if self.policy_representation == "scalar" else ()
        return policy if self.train_part == "occupancy" else ("actions", "rewards", *policy)

    def view(self) -> FutureStates:
        """Pairs (s_t, s_{t+Δt}) with the γ, the truncation and the history of this model."""
        return FutureStates(self.gamma, self.max_offset, self.history, self.terminals)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The occupancy's denoiser, the reward model, Q and the actor, as far as trained."""
        groups = {"occupancy": list(self.occupancy.denoiser.parameters())}
        if self.train_part == "occupancy":
            return groups
        heads = {name: list(getattr(self, name).parameters()) for name in ("reward", "q", "actor")}
        return heads if self.train_part == "heads" else groups | heads

    def setup(self, stage: str) -> None:
        """Begin with a pre-trained occupancy model, unless a run is resumed."""
        if stage == "fit" and self.pretrained is not None and self.trainer.ckpt_path is None:
            self.load_occupancy(self.pretrained)
        super().setup(stage)

    def load_occupancy(self, path: str) -> None:
        """Take occupancy model and normaliser from another DVFModule's checkpoint.

        Raises:
            ConfigError: the checkpoint does not fit this model's sizes.
        """
        state = read_checkpoint(path)["state_dict"]
        for name in ("occupancy", "normalizer"):
            part = {
                key.removeprefix(f"{name}."): value
                for key, value in state.items()
                if key.startswith(f"{name}.")
            }
            try:
                getattr(self, name).load_state_dict(part)
            except RuntimeError as error:
                first = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"pretrained: {path} does not fit this model; give both the same denoiser, "
                    f"schedule and policy_representation ({first})"
                ) from error

    # ---- losses --------------------------------------------------------------------------------

    def losses(self, batch: FutureStateBatch) -> dict[str, Tensor]:
        """Losses of the parts that are trained; Q and the actor wait for ``warmup_steps``."""
        losses = {}
        if self.train_part != "heads":
            losses["occupancy"] = self.occupancy_loss(batch)
        if self.train_part == "occupancy":
            return losses
        losses["reward"] = self.reward_loss(batch)
        if self._trainer is not None and self.trainer.global_step < self.warmup_steps:
            # zero times each parameter, so that DDP finds every gradient it waits for
            idle = [*self.q.parameters(), *self.actor.parameters()]
            losses["waiting"] = torch.stack([p.sum() for p in idle]).sum() * 0.0
            return losses
        losses["q"] = self.q_loss(batch)
        losses["actor"] = self.actor_loss(batch)
        return losses

    def occupancy_loss(self, batch: FutureStateBatch) -> Tensor:
        """Eq. 8 on s_{t+Δt}, with the absorbing state past a true terminal."""
        observations, targets = self.normalizer.normalize(
            torch.stack([batch.observations, batch.future_observations])
        )
        condition = self.occupancy.condition(
            observations, batch.offsets[:, None].float(), self._history(batch), batch.policy
        )
        return self.occupancy.loss(targets, batch.future_absorbed, condition, self.noise).mean()

    def reward_loss(self, batch: FutureStateBatch) -> Tensor:
        """Squared error in symlog space over the labelled rows (section 3.3).

        Rows without a label count in the mean with an error of zero: so two processes average to
        what one process computes, and Adam does not see the constant factor.
        """
        predicted = self.reward(
            torch.cat([self.normalizer.normalize(batch.observations), batch.actions], -1)
        ).squeeze(-1)
        error = (predicted - symlog(batch.rewards)).square()
        if batch.reward_mask is not None:
            error = torch.where(batch.reward_mask, error, 0.0)
        return error.mean()

    def q_loss(self, batch: FutureStateBatch) -> Tensor:
        """Regression of Q on r + γ (1 − terminal) V(s'), Eq. 11, in units of (1 − γ) Q."""
        with torch.no_grad():
            observations = self.normalizer.normalize(batch.observations)
            rewards = batch.rewards
            if batch.reward_mask is not None:
                guess = self._reward(observations, batch.actions)
                rewards = torch.where(batch.reward_mask, rewards, guess)
            values = self._value(
                self.normalizer.normalize(batch.next_observations),
                self._history(batch, after=True),
                batch.policy,
                self.noise,
            )
            values = torch.where(batch.terminals, 0.0, values)
            target = (1.0 - self.gamma) * (rewards + self.gamma * values)
        predicted = self.q(torch.cat([observations, batch.actions], -1)).squeeze(-1)
        self.info("q/mean", predicted.mean() / (1.0 - self.gamma))
        self.info("q/target_mean", target.mean() / (1.0 - self.gamma))
        return (predicted - target).square().mean()

    def actor_loss(self, batch: FutureStateBatch) -> Tensor:
        """Policy extraction by ``extraction``; no gradient reaches Q, r or ρ."""
        observations = self.normalizer.normalize(batch.observations)
        if self.extraction == "awr":
            loss, seen = awr_loss(
                self.actor, self.q, observations, batch.actions, self.awr_temperature
            )
        elif self.extraction == "q_net":
            loss, seen = q_loss(
                self.actor,
                self.q,
                observations,
                batch.actions,
                self.noise.normal(batch.actions.shape),
                self.bc_coefficient,
                unit=1.0 / (1.0 - self.gamma),
            )
        else:
            loss, seen = reward_gradient_loss(
                self.actor, self.reward, observations, batch.actions, self.bc_coefficient
            )
        for name, value in seen.items():
            self.info(f"actor/{name}", value)
        return loss

    def after_step(self) -> None:
        """Move the averaged denoiser."""
        if self.train_part != "heads":
            self.occupancy.follow()

    # ---- values --------------------------------------------------------------------------------

    @torch.no_grad()
    def value(
        self,
        observations: Tensor,
        *,
        history: History | None = None,
        policy: Tensor | None = None,
        steps_left: Tensor | None = None,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """V(s), the expected discounted return from s under the actor, in the reward's units.

        V(s) = r(s, π(s)) + γ (1 − γ^H)/(1 − γ) · mean of r(s', π(s')) over s' ~ ρ(· | s, φ(π)),
        with Δt cut off at H, and r = 0 in the absorbing state (Eq. 3).

        Args:
            observations: raw (B, o), on the module's device.
            history: raw preceding states (B, k, o), their actions (B, k, a) or None, mask (B, k).
            policy: scalar representation (B,).
            steps_left: H, steps before a time limit (B,); endless by default.
            num_samples: n; the module's own by default.
            seed: names the noise; the same seed gives the same value.

        Returns:
            (B,) values.
        """
        normalised = self.normalizer.normalize(observations)
        noise = ShardedGenerator(seed, device=self.device)
        history = self._normalise_history(history)
        return self._value(normalised, history, policy, noise, steps_left, num_samples)

    @torch.no_grad()
    def sample_future(
        self,
        observations: Tensor,
        offsets: Tensor,
        *,
        history: History | None = None,
        policy: Tensor | None = None,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Draw states Δt steps after the given ones.

        Args:
            observations: raw (B, o).
            offsets: Δt, (B, n): one sample each.
            history: as for :meth:`value`.
            policy: scalar representation (B,).
            seed: names the noise.

        Returns:
            Raw states (B, n, o) and which of them are absorbed, bool (B, n).
        """
        condition = self.occupancy.condition(
            self.normalizer.normalize(observations),
            offsets.float(),
            self._normalise_history(history),
            policy,
        )
        noise = ShardedGenerator(seed, device=self.device)
        states, absorbed = self.occupancy.sample(condition, noise)
        return self.normalizer.denormalize(states), absorbed

    def _value(
        self,
        observations: Tensor,
        history: History | None,
        policy: Tensor | None,
        noise: ShardedGenerator,
        steps_left: Tensor | None = None,
        num_samples: int | None = None,
    ) -> Tensor:
        """:meth:`value` of normalised observations (B, o), with noise given."""
        rows, samples = observations.shape[0], num_samples or self.num_samples
        limit = torch.full((rows, 1), float(self.max_offset or math.inf), device=self.device)
        horizon = limit.new_full((rows,), math.inf)
        if steps_left is not None:
            horizon = steps_left.to(limit)
            limit = torch.minimum(limit, horizon.clamp_min(1.0)[:, None])
        offsets = truncated_geometric(noise.uniform((rows, samples)), self.gamma, limit)
        condition = self.occupancy.condition(observations, offsets.float(), history, policy)
        states, absorbed = self.occupancy.sample(condition, noise)
        everywhere = torch.cat([observations[:, None], states], dim=1)
        paid = self._reward(everywhere, self.actor(everywhere))
        later = torch.where(absorbed, 0.0, paid[:, 1:]).mean(dim=1)
        weight = self.gamma * (1.0 - self.gamma**horizon) / (1.0 - self.gamma)
        return paid[:, 0] + weight * later

    def _reward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """r(s, a) in the reward's units, for normalised observations (…, o)."""
        return symexp(self.reward(torch.cat([observations, actions], dim=-1)).squeeze(-1).float())

    def _history(self, batch: FutureStateBatch, after: bool = False) -> History | None:
        """Normalised history of s_t, or with ``after`` of s_{t+1}, which ends with s_t."""
        if not self.history or batch.history is None:
            return None
        states, actions, mask = batch.history, batch.history_actions, batch.history_mask
        if after:
            states = torch.cat([states[:, 1:], batch.observations[:, None]], dim=1)
            mask = torch.cat([mask[:, 1:], torch.ones_like(mask[:, :1])], dim=1)
            if actions is not None:
                actions = torch.cat([actions[:, 1:], batch.actions[:, None]], dim=1)
        return self._normalise_history((states, actions, mask))

    def _normalise_history(self, history: History | None) -> History | None:
        if history is None or not self.history:
            return None
        states, actions, mask = history
        return self.normalizer.normalize(states), actions, mask

    # ---- acting and looking --------------------------------------------------------------------

    def policy(self) -> NetworkPolicy:
        """Act by the actor's mean.

        Raises:
            ConfigError: only the occupancy was trained, so there is nothing that acts.
        """
        if self.train_part == "occupancy":
            raise ConfigError(
                "This DVFModule was pre-trained on states alone and has no policy yet; train the "
                "rest with train 'heads' or 'all' and 'pretrained' set to this checkpoint."
            )
        return NetworkPolicy(lambda rows: self.actor(self.normalizer.normalize(rows)), self.device)
