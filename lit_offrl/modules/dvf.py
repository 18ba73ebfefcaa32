"""Diffused value functions (DVF): occupancy by diffusion × reward by regression = value.

Source: Mazoure et al., "Value function estimation using conditional diffusion models for control".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.views import FutureStateBatch, FutureStates
from lit_offrl.modules.checkpoints import load_parts, read_checkpoint
from lit_offrl.modules.dvf_values import DiffusedValues, labels
from lit_offrl.modules.extraction import (
    awr_loss,
    q_loss,
    reward_gradient_loss,
    weighted_loss,
)
from lit_offrl.modules.history import History
from lit_offrl.modules.occupancy import OccupancyModel
from lit_offrl.modules.optimizer import CostChange, Decay
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import DenseNetMLP, GaussianPolicy, frozen_copy, polyak_update_, symlog


class DVFModule(DiffusedValues):
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
    * a predicted reward is held within the range of the data's: states that ρ draws lie off the
      data at times, where symexp blows a regression's error up (here to −37 a step);
    * Q is predicted as Q·(1−γ), the reward's own scale, so that one learning rate fits every γ;
    * Eq. 10 is divided by the mean |Q| of the batch, without which no fixed behaviour-cloning
      coefficient means the same in two environments;
    * policies may be extracted by weighted likelihood (``awr``), and its advantages measured along
      the data's trajectories (``advantage: returns``), since Q loses what one action changes in the
      noise of sampled values: docs/results.md has the numbers.

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
        near_share: share of the pairs that ρ learns from whose Δt is log-uniform up to 1/(1−γ), not
            geometric: for a model that is to be asked with smaller γ or Δt, too. Samples and values
            draw their Δt geometrically all the same.
        policy_representation: φ(π): ``sequential`` (the states before s), ``scalar`` (the data's
            ``policy`` column) or ``none``.
        history: number of preceding states of the sequential representation.
        history_actions: whether their actions belong to it too.
        value_policy: whose value Q is regressed on, and the actor begins with, where φ is scalar:
            ``own``, the policy that each row was collected by; or ``latest``, the policy of the
            largest index in the training data whatever row s_{t+1} is from, as the online mode
            needs it (section 3.3, item 4): the rows of older policies then teach ρ where states
            lead, but their values are those of the newest, not of a mixture.
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
        bc_coefficient: weight of the squared distance to the data's actions (q_net, reward_grad);
            with q_net and value_policy ``latest`` to those of the latest policy's rows alone, since
            Q is worth little far from the policy whose values it was regressed on.
        awr_temperature: β of the weights exp(β · A / mean |A|), cut at 100.
        advantage: of awr's weights: ``q``, Q(s, a) − Q(s, π(s)) of the regressed Q; or ``returns``,
            G(s, a) − b(s), for which values must be cached. G is the λ-return of the trajectory
            that took a, bootstrapped with the cached V, and b(s) a state baseline regressed on G.
            Sampled values are noisy, and what one action changes is small beside that noise: Q,
            which averages it over neighbouring (s, a), loses the difference between actions too,
            while the rewards along the trajectory keep it.
        return_trace: λ of those returns: 0 is r + γ V(s'), the paper's target of Q, and 1 the
            data's own return, V only where an episode is cut off.
        actor_ema_rate: rate of the averaged actor, which acts and whose value is estimated: the
            returns of the latest weights swing from one hundred steps to the next; 1 acts by them.
        warmup_steps: optimiser steps in which ρ and r settle and the actor clones the behaviour
            policy, before Q begins.
        values: ``online`` samples V(s_{t+1}) for each batch anew (Algorithm 1); ``cached`` stops
            training ρ and r after the warm-up and samples the values of all rows once, so that Q
            and the actor learn from targets of n samples at the price of a table look-up. With
            train ``occupancy`` there are none, and ρ trains to the end.
        refresh_steps: samples the cached values anew each so many steps, for the actor of that
            time; never by default, which leaves them those of the behaviour policy.
        learning_rate: Adam's rate.
        decay: of the rate: ``constant``, or ``cosine`` to 0 at ``trainer.max_steps``, without which
            small constant errors of r wander, each worth γ/(1−γ) times as much in V. With values
            ``cached`` that of ρ and r is 0 by the end of the warm-up, where their training ends.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: options contradict each other or the data, or a number is out of its range.
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
        near_share: float = 0.0,
        policy_representation: Literal["sequential", "scalar", "none"] = "sequential",
        history: int = 8,
        history_actions: bool = False,
        value_policy: Literal["own", "latest"] = "own",
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
        awr_temperature: float = 1.0,
        advantage: Literal["q", "returns"] = "q",
        return_trace: float = 0.95,
        actor_ema_rate: float = 0.002,
        warmup_steps: int = 0,
        values: Literal["online", "cached"] = "online",
        refresh_steps: int | None = None,
        learning_rate: float = 3e-4,
        decay: Decay = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            action_low,
            action_high,
            learning_rate=learning_rate,
            decay=decay,
            seed=seed,
        )
        require_in("[0, 1)", gamma=gamma, near_share=near_share)
        require_in("[0, 1]", return_trace=return_trace)
        require_in("[1, inf)", num_samples=num_samples, max_offset=max_offset)
        require_in("[1, inf)", refresh_steps=refresh_steps)
        require_in("[0, inf)", bc_coefficient=bc_coefficient, awr_temperature=awr_temperature)
        require_in("[0, inf)", warmup_steps=warmup_steps)
        require_in("(0, 1]", actor_ema_rate=actor_ema_rate)
        if train != "occupancy" and action_dim < 1:
            raise ConfigError(
                f"train is '{train}', which needs a dataset with actions and rewards; "
                "this one has no actions: set train to 'occupancy' to pre-train on states alone."
            )
        if train == "heads" and pretrained is None:
            raise ConfigError(
                "train is 'heads' without 'pretrained': name a checkpoint to build on."
            )
        if values == "cached" and warmup_steps < 1:
            raise ConfigError(
                "values is 'cached' without warmup_steps: give the steps that ρ and r train before "
                "values are sampled from them."
            )
        if advantage == "returns" and (extraction != "awr" or values != "cached"):
            raise ConfigError(
                f"advantage is 'returns' with extraction '{extraction}' and values '{values}': it "
                "weighs awr's likelihood along whole trajectories, so set extraction to 'awr' and "
                "values to 'cached'."
            )
        sequential = policy_representation == "sequential"
        if sequential and history < 1:
            raise ConfigError("policy_representation 'sequential' needs history of at least 1.")
        if sequential and history_actions and action_dim < 1:
            raise ConfigError(
                "history_actions is true, but the dataset has no actions: set it to false."
            )
        if value_policy == "latest" and policy_representation != "scalar":
            raise ConfigError(
                f"value_policy is 'latest' and policy_representation '{policy_representation}': "
                "only scalar policies have a latest one; set policy_representation to 'scalar', or "
                "value_policy to 'own'."
            )
        self.save_hyperparameters()
        self.train_part = train
        self.pretrained = pretrained
        self.gamma = gamma
        self.terminals = terminals
        self.max_offset = max_offset
        self.near_share = near_share
        self.policy_representation = policy_representation
        self.history = history if sequential else 0
        self.history_actions = sequential and history_actions
        self.value_policy = value_policy
        self.latest_policy = None
        self.num_samples = num_samples
        self.extraction = extraction
        self.bc_coefficient = bc_coefficient
        self.awr_temperature = awr_temperature
        self.warmup_steps = warmup_steps
        self.advantage = advantage
        self.return_trace = return_trace
        self.actor_ema_rate = actor_ema_rate
        self.values = "online" if train == "occupancy" else values  # ρ alone has none to cache
        self.refresh_steps = refresh_steps
        self._cache: Tensor | None = None
        self._returns: Tensor | None = None
        self._seen_values: list[Tensor] = []

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
        self.register_buffer("reward_limits", torch.tensor([-math.inf, math.inf]))
        self.reward = DenseNetMLP(observation_dim + action_dim, hidden, 1)
        self.q = DenseNetMLP(observation_dim + action_dim, hidden, 1)
        if advantage == "returns":
            self.baseline = DenseNetMLP(observation_dim, hidden, 1)
        self.actor: GaussianPolicy | None = (
            GaussianPolicy(
                observation_dim,
                action_dim,
                hidden=hidden,
                low=action_low,
                high=action_high,
                # past σ = 1 most actions are cut off at the bounds and the entropy is no longer
                # that of the policy, so that Eq. 10 would let σ grow without end
                log_std_range=(-5.0, 0.0),
            )
            if action_dim
            else None
        )
        self.acting = None if self.actor is None else frozen_copy(self.actor)
        trained = set(self.parameter_groups())
        for name, part in self.named_children():
            if name not in trained:
                part.requires_grad_(False)

    # ---- what it needs from the data -----------------------------------------------------------

    cpu_advice = "add --config configs/quick.yaml, which fits two cores"
    missing_columns_advice = (
        "Choose a dataset that has it, or set model.init_args.train to occupancy to pre-train on "
        "states alone."
    )

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which this part cannot be trained."""
        policy = ("policy",) if self.policy_representation == "scalar" else ()
        if self.train_part == "occupancy":
            return ("actions",) if self.history_actions else policy
        return ("actions", "rewards", *policy)

    def view(self) -> FutureStates:
        """Pairs (s_t, s_{t+Δt}) with the γ, the truncation and the history of this model."""
        return FutureStates(
            self.gamma, self.max_offset, self.history, self.terminals, self.near_share
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The occupancy's denoiser, the reward model, Q and the actor, as far as trained."""
        groups = {"occupancy": list(self.occupancy.denoiser.parameters())}
        if self.train_part == "occupancy":
            return groups
        names = ("reward", self._critic, "actor")
        heads = {name: list(getattr(self, name).parameters()) for name in names}
        return heads if self.train_part == "heads" else groups | heads

    @property
    def _critic(self) -> Literal["q", "baseline"]:
        """What advantages are measured with; the other one is not trained."""
        return "q" if self.advantage == "q" else "baseline"

    def setup(self, stage: str) -> None:
        """Take what the data say: normaliser's statistics, rewards' range, latest policy."""
        super().setup(stage)
        if self.value_policy == "latest" and self.datamodule is not None:
            self.latest_policy = float(self.datamodule.train_policies().max())
        fresh = not bool(self.reward_limits.isfinite().all())
        if stage == "fit" and self.train_part != "occupancy" and self.datamodule and fresh:
            rewards = symlog(torch.from_numpy(self.datamodule.train_rewards().copy()))
            if len(rewards):
                self.reward_limits.copy_(torch.stack(rewards.aminmax()))

    def on_fit_start(self) -> None:
        """Begin with a pre-trained occupancy model, unless a run is resumed."""
        # Not in setup, where Lightning does not say yet whether it is going to resume.
        if self.pretrained is not None and self.trainer.ckpt_path is None:
            self.load_occupancy(self.pretrained)

    def load_occupancy(self, path: str) -> None:
        """Take occupancy model and normaliser from another DVFModule's checkpoint.

        Raises:
            ConfigError: the checkpoint does not fit this model's sizes, or means something else.
        """
        checkpoint = read_checkpoint(path)
        told: tuple[str, ...] = ("prediction", "heads")  # which no size of a weight tells
        if self.train_part == "heads":  # else what terminals mean is learned anew
            told += ("terminals",)
        for name in told:
            theirs, mine = checkpoint.get("hyper_parameters", {}).get(name), self.hparams[name]
            if theirs not in (None, mine):
                raise ConfigError(
                    f"pretrained: {path} was trained with {name} {theirs}, this model has {mine}: "
                    f"set model.init_args.{name} to {theirs}."
                )
        refusal = (
            f"pretrained: {path} does not fit this model; give both the same denoiser, schedule "
            "and policy_representation"
        )
        load_parts(self, ("occupancy", "normalizer"), checkpoint["state_dict"], refusal)

    # ---- losses --------------------------------------------------------------------------------

    def trains(self) -> dict[str, Callable[[FutureStateBatch], Tensor]]:
        """The losses of the step under way, by the name of the network that they train."""
        warming = self._step() < self.warmup_steps
        settled = self.values == "cached" and not warming
        losses: dict[str, Callable[[FutureStateBatch], Tensor]] = {}
        if self.train_part != "heads" and not settled:
            losses["occupancy"] = self.occupancy_loss
        if self.train_part == "occupancy":
            return losses
        if not settled:
            losses["reward"] = self.reward_loss
        if warming:
            return losses | {"actor": self.cloning_loss}
        critic_loss = self.q_loss if self.advantage == "q" else self.baseline_loss
        return losses | {self._critic: critic_loss, "actor": self.actor_loss}

    def losses(self, batch: FutureStateBatch) -> dict[str, Tensor]:
        """Algorithm 1's losses, as far as the step under way has them.

        Raises:
            ConfigError: the view gives no pairs of a state and a later one.
        """
        if not isinstance(batch, FutureStateBatch):
            raise ConfigError(
                f"DVFModule trains on FutureStates, but the view gives a {type(batch).__name__}: "
                "set data.init_args.view to FutureStates, or leave the view to the model."
            )
        return {name: loss(batch) for name, loss in self.trains().items()}

    def trained_until(self, network: str) -> int | float:
        """ρ and r rest after the warm-up where their values are cached then."""
        done = self.values == "cached" and network in ("occupancy", "reward")
        return self.warmup_steps if done else math.inf

    def cost_changes(self, step: int) -> CostChange | None:
        """The warm-up's end: then values are sampled for each batch, or ρ and r train no more."""
        if self.train_part == "occupancy" or step >= self.warmup_steps:
            return None
        return CostChange(self.warmup_steps, dearer=self.values == "online")

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters of the networks that wait or that are done, and those their losses omit."""
        busy = self.trains()
        groups = self.parameter_groups()
        idle = [one for name, group in groups.items() if name not in busy for one in group]
        if self.extraction == "reward_grad" and "q" in busy:
            idle.append(self._trained_actor().raw_log_std)  # r is ascended at the mean alone
        return idle

    def _step(self) -> int | float:
        return math.inf if self._trainer is None else self.trainer.global_step

    def occupancy_loss(self, batch: FutureStateBatch) -> Tensor:
        """Eq. 8 on s_{t+Δt}, with the absorbing state past a true terminal."""
        observations, targets = self.normalizer.normalize(
            torch.stack([batch.observations, batch.future_observations])
        )
        history = self._normalised(History.before(batch))
        condition = self.occupancy.condition(
            observations, batch.offsets[:, None].float(), history, batch.policy
        )
        return self.occupancy.loss(targets, batch.future_absorbed, condition, self.noise).mean()

    def reward_loss(self, batch: FutureStateBatch) -> Tensor:
        """Squared error in symlog space over the labelled rows (section 3.3).

        Rows without a label count in the mean with an error of zero: so two processes average to
        what one process computes, and Adam does not see the constant factor.
        """
        actions, rewards = labels(batch)
        observations = self.normalizer.normalize(batch.observations)
        predicted = self.reward(torch.cat([observations, actions], dim=-1)).squeeze(-1)
        error = (predicted - symlog(rewards)).square()
        if batch.reward_mask is not None:
            error = torch.where(batch.reward_mask, error, 0.0)
        return error.mean()

    def q_loss(self, batch: FutureStateBatch) -> Tensor:
        """Regression of Q on r + γ (1 − terminal) V(s'), Eq. 11, in units of (1 − γ) Q."""
        actions, _ = labels(batch)
        observations = self.normalizer.normalize(batch.observations)
        target = self._target(batch)
        predicted = self.q(torch.cat([observations, actions], dim=-1)).squeeze(-1)
        self.log_scalar("q/mean", predicted.mean() / (1.0 - self.gamma))
        self.log_scalar("q/target_mean", target.mean() / (1.0 - self.gamma))
        return (predicted - target).square().mean()

    def baseline_loss(self, batch: FutureStateBatch) -> Tensor:
        """Regression of b(s) on the returns, in units of (1 − γ) G.

        Its mean is over all policies of the data, whatever φ V was asked with: an action is good
        that does better than what was done in such states, also by a policy that was better.
        """
        target = self._target(batch)
        predicted = self.baseline(self.normalizer.normalize(batch.observations)).squeeze(-1)
        self.log_scalar("baseline/mean", predicted.mean() / (1.0 - self.gamma))
        self.log_scalar("baseline/target_mean", target.mean() / (1.0 - self.gamma))
        return (predicted - target).square().mean()

    @torch.no_grad()
    def _target(self, batch: FutureStateBatch) -> Tensor:
        """(1 − γ) times what (s, a) is worth (B,): of held-out rows always r + γ V(s')."""
        if self.training and self._returns is not None:
            return (1.0 - self.gamma) * self._returns[batch.rows]
        if self.training and self._cache is not None:
            values = self._cache[batch.rows]
        else:
            values = self._next_values(batch, self.noise)
        return (1.0 - self.gamma) * (self._rewards_of(batch) + self.gamma * values)

    def on_train_batch_start(self, batch: FutureStateBatch, batch_idx: int) -> None:
        """Sample the values of all rows when ``values: cached`` is due."""
        waited = self._step() - self.warmup_steps
        first_of_step = batch_idx % self.trainer.accumulate_grad_batches == 0
        if self.values == "online" or waited < 0 or not first_of_step:
            return
        again = self.refresh_steps is not None and waited % self.refresh_steps == 0
        if self._cache is None or again:
            self._cache, self._returns = self._sample_cache(), None
        if self._returns is None and self.advantage == "returns":
            self._returns = self._trajectory_returns(self._cache)

    def cloning_loss(self, batch: FutureStateBatch) -> Tensor:
        """Behaviour cloning by likelihood: during warm-up V is that of the behaviour policy.

        With ``value_policy: latest`` the rows of older policies count in the mean as zeros.
        """
        actions, _ = labels(batch)
        observations = self.normalizer.normalize(batch.observations)
        likelihood = self._trained_actor().log_prob(observations, actions)
        cloned = self._cloned(batch)
        if cloned is not None:
            likelihood = torch.where(cloned, likelihood, 0.0)
        return -likelihood.mean()

    def _cloned(self, batch: FutureStateBatch) -> Tensor | None:
        """Which rows (B,) are the latest policy's, and so to be cloned; None for all."""
        if self.latest_policy is None or batch.policy is None:
            return None
        return batch.policy == self.latest_policy

    def actor_loss(self, batch: FutureStateBatch) -> Tensor:
        """Policy extraction by ``extraction``; no gradient reaches Q, r or ρ."""
        actions, _ = labels(batch)
        actor = self._trained_actor()
        observations = self.normalizer.normalize(batch.observations)
        if self.advantage == "returns":
            with torch.no_grad():
                above = self._target(batch) - self.baseline(observations).squeeze(-1)
            loss, seen = weighted_loss(actor, above, observations, actions, self.awr_temperature)
        elif self.extraction == "awr":
            loss, seen = awr_loss(actor, self.q, observations, actions, self.awr_temperature)
        elif self.extraction == "q_net":
            noise = self.noise.normal(actions.shape)
            unit = 1.0 / (1.0 - self.gamma)
            loss, seen = q_loss(
                actor, self.q, observations, actions, noise, self.bc_coefficient, unit,
                self._cloned(batch),
            )  # fmt: skip
        else:
            loss, seen = reward_gradient_loss(
                actor, self.reward, observations, actions, self.bc_coefficient
            )
        for name, value in seen.items():
            self.log_scalar(f"actor/{name}", value)
        return loss

    def after_step(self) -> None:
        """Move the averages."""
        busy = self.trains()
        if "occupancy" in busy:
            self.occupancy.update_ema()
        if "actor" in busy and self.acting is not None:
            polyak_update_(self.acting, self._trained_actor(), self.actor_ema_rate)

    def _trained_actor(self) -> GaussianPolicy:
        assert self.actor is not None  # without actions only the occupancy is trained
        return self.actor

    def policy(self) -> NetworkPolicy:
        """Act by the averaged actor's mean.

        Raises:
            ConfigError: only the occupancy was trained, so there is nothing that acts.
        """
        actor = self._acting()
        return NetworkPolicy(lambda rows: actor(self.normalizer.normalize(rows)), self.device)
