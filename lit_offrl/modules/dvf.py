"""Diffused value functions (DVF): occupancy by diffusion × reward by regression = value.

Source: Mazoure et al., "Value function estimation using conditional diffusion models for control".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import FutureStateBatch, FutureStates
from lit_offrl.diffusion import Variance
from lit_offrl.modules.checkpoints import load_parts, read_checkpoint
from lit_offrl.modules.dvf_cache import ValueCache
from lit_offrl.modules.dvf_estimates import EstimatesModule
from lit_offrl.modules.dvf_value import DiffusedValue, labels
from lit_offrl.modules.extraction import (
    awr_loss,
    frozen,
    q_loss,
    reward_gradient_loss,
    weighted_loss,
)
from lit_offrl.modules.occupancy import History, OccupancyModel
from lit_offrl.modules.optimizer import CostChange
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import DenseNetMLP, GaussianPolicy, frozen_copy, polyak_update_, symlog

_CACHE_KEY = "dvf_cached_values"  # of a checkpoint


class DVFModule(EstimatesModule):
    """A value from where the policy goes next and the rewards there; a policy from that value.

    Four networks, each trained by its own loss in one optimiser step (Algorithm 1):

    * ``occupancy``: ρ(s' | s, Δt, φ(π)), a diffusion model learned from states alone;
    * ``reward``: r(s, a), regressed in symlog space on the labelled rows;
    * ``q``: Q(s, a), regressed on r + γ (1 − terminal) V(s'), where V is made by sampling ρ;
    * ``actor``: the policy.

    Departures from the paper, each because its text contradicts itself or is silent:

    * states are scaled to [−1, 1], not [0, 1]: Algorithm 1's comment, not its formula;
    * V(s) is r(s, π(s)) plus γ/(1−γ) times the MEAN of r over samples; Algorithm 1 prints a sum
      and leaves the first reward out;
    * past a true terminal the state is absorbing and its reward 0 (``terminals``);
    * a predicted reward is clamped to the range of the data's: states that ρ draws sometimes lie
      off the data, where symexp magnifies a regression's error (here to −37 a step);
    * Q is predicted as Q·(1−γ), the reward's own scale, so that one learning rate fits every γ;
    * Eq. 10 is divided by the mean |Q| of the batch, without which no fixed behaviour-cloning
      coefficient means the same in two environments;
    * policies may be extracted by weighted likelihood (``awr``), and its advantages measured along
      the data's trajectories (``advantage: returns``), since Q loses what one action changes in the
      noise of sampled values: docs/results/dvf.md has the numbers.

    The networks are trained here; ``DiffusedValue`` turns them into values, ``EstimatesModule``
    returns these on request, and ``ValueCache`` keeps those of all rows where they are sampled
    once.

    Args:
        train: What is trained: ``all`` networks together; the ``occupancy`` alone, to pre-train on
            states without rewards or actions; or the ``heads``, everything but the occupancy.
        pretrained: Checkpoint of a DVFModule from which this one takes its occupancy model and
            normaliser; ``heads`` needs one.
        gamma: Discount γ in [0, 1).
        terminals: ``absorbing`` continues an episode past a true terminal in a state without
            reward. ``truncate`` treats a terminal as a time limit and therefore ignores that no
            reward follows it.
        max_offset: Largest Δt in steps, at least 1, in training and in sampling; unlimited by
            default. With a limit, values count only the rewards up to this Δt.
        near_share: Fraction of training pairs, in [0, 1), whose offset is log-uniform on
            [1, 1/(1−γ)] instead of geometric. Use it if the model will be queried with a smaller γ
            or Δt. Samples and values draw their Δt geometrically in any case.
        policy_representation: Representation φ(π) of the policy: ``sequential`` (the states before
            s), ``scalar`` (the column ``policy`` of the data) or ``none``.
        history: Number of preceding states in the sequential representation, at least 1.
        history_actions: Whether the sequential representation also has the actions of these states.
        value_policy: Policy whose value Q is regressed on, and which the actor starts from, if φ is
            scalar: ``own`` is the policy that collected the row; ``latest`` is the one with the
            largest index in the training data, whichever policy the row is from, as the online mode
            needs it (section 3.3, item 4). Rows of older policies then still teach ρ where states
            lead, but their values are those of the newest policy.
        width: Width of the Perceiver IO, an even number that the heads divide.
        blocks: Number of blocks of the Perceiver IO, at least 1.
        heads: Number of heads, at least 1, in the cross-attention and in the self-attention of the
            Perceiver IO.
        latents: Number of latents of the Perceiver IO, at least 1; the paper does not give it.
        latents_per: What the denoiser's latents are computed for. ``sample``: as in the paper's
            Perceiver IO, they attend to the noisy state, so each sample needs new ones in each
            sampling step. ``state``: they attend to s_t and φ(π) only and are computed once for
            all samples. At the paper's size values then cost a fiftieth and were as good
            (docs/results/dvf.md).
        schedule: Noise schedule of the diffusion: ``cosine``, ``linear`` or ``vp``.
        diffusion_steps: Number T of diffusion steps, at least 1.
        prediction: What the denoiser predicts: the noise ``epsilon``, the state ``x0`` or the
            velocity ``v``.
        weighting: Weight of the diffusion loss over diffusion times: ``uniform`` or ``min_snr``.
        ema_rate: Rate in (0, 1] at which the averaged denoiser, which samples, follows the trained
            one.
        sampler: Sampler of ρ, in training and for values: ``dpm++``, ``ddim`` or ``ddpm``.
        variance: Variance of the noise in a step of ``ddpm``: ``beta`` or ``posterior``.
        sampling_steps: Number of sampling steps, in [1, diffusion_steps]; the largest gives the
            full chain.
        num_samples: Number n of states that are drawn for one value, at least 1.
        draws: How the n samples of a value draw the noise that sampling starts from.
            ``independent``: each its own. ``antithetic``: in pairs z and −z with neighbouring Δt,
            which leaves values unbiased and reduced their variance to 0.6 times its size on hopper
            (docs/results/dvf.md).
        hidden: Widths of the hidden layers of the reward model, of Q and of the actor.
        extraction: How the actor learns: ``q_net`` maximises the regressed Q (Eq. 10); ``awr``
            maximises the likelihood of the data's actions, weighted by exp(advantage);
            ``reward_grad`` implements Eq. 12 literally. In this form the diffusion model cannot
            influence the policy; the option exists only to demonstrate that.
        bc_coefficient: Weight, at least 0, of the squared distance to the data's actions in
            ``q_net`` and ``reward_grad``. With ``q_net`` and ``value_policy: latest`` only rows of
            the latest policy count, since Q is unreliable far from the policy whose values it was
            regressed on.
        awr_temperature: Inverse temperature β, at least 0, of the weights exp(β · A / mean |A|) of
            ``awr``, which are capped at 100.
        advantage: Advantage A of ``awr``: ``q`` is Q(s, a) − Q(s, π(s)) of the regressed Q;
            ``q_baseline`` is Q(s, a) − b(s) with a state baseline b that is regressed on Q at the
            data's actions, so that Q is never evaluated at other actions, and A does not depend on
            the actor; ``returns`` is G(s, a) − b(s), for which values must be cached. G is the
            λ-return of the trajectory that took a, bootstrapped with the cached V, and b is
            regressed on G. It keeps what no function of one state and action can express: how well
            the trajectory went, and so which policy took a.
        return_trace: Parameter λ in [0, 1] of the returns G of ``advantage: returns``: 0 is r + γ
            V(s'), the paper's target of Q; 1 is the data's own return, with V only where an episode
            is cut off.
        actor_ema_rate: Rate in (0, 1] at which the averaged actor, which acts and whose value is
            estimated, follows the trained one. With 1 the latest weights act; their returns can
            change strongly within a hundred steps.
        warmup_steps: Number of optimiser steps, at least 0, in which ρ and r are trained and the
            actor imitates the behaviour policy, before the training of Q starts.
        values: ``online`` samples V(s_{t+1}) for each batch (Algorithm 1). ``cached`` stops
            training ρ and r after the warm-up and samples the values of all rows once, so that Q
            and the actor learn from targets of n samples at the cost of a table look-up; with
            ``train: occupancy`` there are no values, and ρ is trained to the end.
        refresh_steps: Number of steps, at least 1, after which the cached values are sampled again
            for the actor at that time. By default they remain those of the behaviour policy. Only
            the rewards r(s', π(s')) then depend on the new actor: ρ, which was trained on where the
            data's policies go, does not change. Where a different actor goes can only be learned
            from new data with a new φ, as in the online mode.
        **kwargs: Options of ``OfflineModule``. Let ``decay`` be ``cosine`` where values matter:
            without it small constant errors of r remain, each of which counts γ/(1−γ) times in V.
            With values ``cached`` the rate of ρ and r is 0 by the end of the warm-up, where their
            training ends.

    Raises:
        ConfigError: Options contradict each other or the data, or a number is out of its range.
    """

    eager_because = "the values of all rows may be sampled between two steps"
    reward_limits: Tensor
    """Lowest and highest symlog reward of the data (2,)."""

    def __init__(
        self,
        *args: Any,
        train: Literal["all", "occupancy", "heads"] = "all",
        pretrained: str | None = None,
        gamma: Annotated[float, "[0, 1)"] = 0.99,
        terminals: Literal["absorbing", "truncate"] = "absorbing",
        max_offset: Annotated[int | None, "[1, inf)"] = None,
        near_share: Annotated[float, "[0, 1)"] = 0.0,
        policy_representation: Literal["sequential", "scalar", "none"] = "sequential",
        history: int = 8,
        history_actions: bool = False,
        value_policy: Literal["own", "latest"] = "own",
        width: int = 256,
        blocks: int = 8,
        heads: int = 4,
        latents: int = 64,
        latents_per: Literal["sample", "state"] = "sample",
        schedule: Literal["cosine", "linear", "vp"] = "cosine",
        diffusion_steps: Annotated[int, "[1, inf)"] = 128,
        prediction: Literal["epsilon", "x0", "v"] = "epsilon",
        weighting: Literal["uniform", "min_snr"] = "uniform",
        ema_rate: Annotated[float, "(0, 1]"] = 0.005,
        sampler: Literal["dpm++", "ddim", "ddpm"] = "dpm++",
        variance: Variance = "beta",
        sampling_steps: Annotated[int, "[1, inf)"] = 10,
        num_samples: Annotated[int, "[1, inf)"] = 32,
        draws: Literal["independent", "antithetic"] = "independent",
        hidden: Sequence[int] = (256, 256),
        extraction: Literal["q_net", "awr", "reward_grad"] = "q_net",
        bc_coefficient: Annotated[float, "[0, inf)"] = 0.1,
        awr_temperature: Annotated[float, "[0, inf)"] = 1.0,
        advantage: Literal["q", "q_baseline", "returns"] = "q",
        return_trace: Annotated[float, "[0, 1]"] = 0.95,
        actor_ema_rate: Annotated[float, "(0, 1]"] = 0.002,
        warmup_steps: Annotated[int, "[0, inf)"] = 0,
        values: Literal["online", "cached"] = "online",
        refresh_steps: Annotated[int | None, "[1, inf)"] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if train != "occupancy" and self.action_dim < 1:
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
        if advantage == "q_baseline" and extraction != "awr":
            raise ConfigError(
                f"advantage is 'q_baseline' with extraction '{extraction}': only awr weighs by "
                "advantages, so set extraction to 'awr' or advantage to 'q'."
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
        if sequential and history_actions and self.action_dim < 1:
            raise ConfigError(
                "history_actions is true, but the dataset has no actions: set it to false."
            )
        if value_policy == "latest" and policy_representation != "scalar":
            raise ConfigError(
                f"value_policy is 'latest' and policy_representation '{policy_representation}': "
                "only scalar policies have a latest one; set policy_representation to 'scalar', or "
                "value_policy to 'own'."
            )
        self.train_part, self.pretrained = train, pretrained
        self.gamma, self.terminals = gamma, terminals
        self.max_offset, self.near_share = max_offset, near_share
        self.policy_representation, self.value_policy = policy_representation, value_policy
        self.history = history if sequential else 0
        self.history_actions = sequential and history_actions
        self.latest_policy: float | None = None
        """The φ that V(s_{t+1}) takes in training; None takes that of each row."""
        self.num_samples, self.extraction = num_samples, extraction
        self.bc_coefficient, self.awr_temperature = bc_coefficient, awr_temperature
        self.advantage, self.return_trace = advantage, return_trace
        self.warmup_steps, self.refresh_steps = warmup_steps, refresh_steps
        self.actor_ema_rate = actor_ema_rate
        self.values = "online" if train == "occupancy" else values  # ρ alone has none to cache
        self.cache = ValueCache()

        self.occupancy = OccupancyModel(
            self.observation_dim,
            self.action_dim if self.history_actions else 0,
            policy_representation=policy_representation,
            history=self.history,
            schedule=schedule,
            diffusion_steps=diffusion_steps,
            prediction=prediction,
            weighting=weighting,
            ema_rate=ema_rate,
            sampler=sampler,
            variance=variance,
            sampling_steps=sampling_steps,
            width=width,
            blocks=blocks,
            cross_heads=heads,
            self_heads=heads,
            latents=latents,
            latents_per=latents_per,
            draws=draws,
        )
        self.register_buffer("reward_limits", torch.tensor([-math.inf, math.inf]))
        pair_dim = self.observation_dim + self.action_dim
        self.reward = DenseNetMLP(pair_dim, hidden, 1)
        self.q = DenseNetMLP(pair_dim, hidden, 1)
        if advantage != "q":
            self.baseline = DenseNetMLP(self.observation_dim, hidden, 1)
        self.acting: GaussianPolicy | None = None
        if self.action_dim:  # else only the occupancy is trained
            self.actor = GaussianPolicy(
                self.observation_dim,
                self.action_dim,
                hidden=hidden,
                low=self.action_low,
                high=self.action_high,
                # past σ = 1 most actions are cut off at the bounds and the entropy is no longer
                # that of the policy, so that Eq. 10 would let σ grow without end
                log_std_range=(-5.0, 0.0),
            )
            self.acting = frozen_copy(self.actor)
        trained = set(self.parameter_groups())
        for name, part in self.named_children():
            if name not in trained:
                part.requires_grad_(False)

    # ---- what it needs from the data -----------------------------------------------------------

    cpu_advice = "add --config configs/quick.yaml, which fits two cores"
    learns_rewards = True
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
        """The trained ones of the occupancy's denoiser, the reward model, Q or b, and the actor."""
        groups = {"occupancy": list(self.occupancy.denoiser.parameters())}
        if self.train_part == "occupancy":
            return groups
        names = ("reward", *self._critics, "actor")
        heads = {name: list(getattr(self, name).parameters()) for name in names}
        return heads if self.train_part == "heads" else groups | heads

    @property
    def _critics(self) -> tuple[str, ...]:
        """Networks that advantages are measured with; what else there is is not trained."""
        kinds = {"q": ("q",), "q_baseline": ("q", "baseline"), "returns": ("baseline",)}
        return kinds[self.advantage]

    def setup(self, stage: str) -> None:
        """Take the normaliser's statistics, the range of rewards and the latest policy."""
        super().setup(stage)
        if self.value_policy == "latest" and self.datamodule is not None:
            self.latest_policy = float(self.datamodule.train_column("policy").max())
        fresh = not bool(self.reward_limits.isfinite().all())
        if stage == "fit" and self.train_part != "occupancy" and self.datamodule and fresh:
            rewards = symlog(torch.from_numpy(self.datamodule.train_column("rewards").copy()))
            if len(rewards):
                self.reward_limits.copy_(torch.stack(rewards.aminmax()))

    def on_fit_start(self) -> None:
        """Start with a pre-trained occupancy model, unless a run is resumed."""
        # Not in setup, where Lightning does not yet know whether it is going to resume.
        if self.pretrained is not None and self.trainer.ckpt_path is None:
            self.load_occupancy(self.pretrained)

    def load_occupancy(self, path: str) -> None:
        """Take occupancy model and normaliser from another DVFModule's checkpoint.

        Raises:
            ConfigError: The checkpoint does not fit this model's sizes or options.
        """
        checkpoint = read_checkpoint(path)
        checked: tuple[str, ...] = ("prediction", "heads")  # which no weight's size reveals
        if self.train_part == "heads":  # else the meaning of terminals is learned again
            checked += ("terminals",)
        for name in checked:
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

    # ---- values --------------------------------------------------------------------------------

    @property
    def diffused_value(self) -> DiffusedValue:
        """V of the averaged actor, by the networks as they are now.

        Raises:
            ConfigError: Only the occupancy was trained, so there is neither actor nor reward model.
        """
        return DiffusedValue(
            normalizer=self.normalizer,
            occupancy=self.occupancy,
            reward=self.reward,
            reward_limits=self.reward_limits,
            actor=self._acting(),
            gamma=self.gamma,
            max_offset=self.max_offset,
            num_samples=self.num_samples,
            latest_policy=self.latest_policy,
        )

    # ---- losses --------------------------------------------------------------------------------

    def trains(self) -> dict[str, Callable[[FutureStateBatch], Tensor]]:
        """The losses of the current step, by the name of the network that they train."""
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
        critics = {name: getattr(self, f"{name}_loss") for name in self._critics}
        return losses | critics | {"actor": self.actor_loss}

    def losses(self, batch: FutureStateBatch) -> dict[str, Tensor]:
        """Algorithm 1's losses of the networks that the current step trains."""
        self.require_batch(batch, FutureStateBatch, "FutureStates")
        return {name: loss(batch) for name, loss in self.trains().items()}

    def trained_until(self, network: str) -> int | float:
        """ρ and r rest after the warm-up if the values made of them are cached then."""
        done = self.values == "cached" and network in ("occupancy", "reward")
        return self.warmup_steps if done else math.inf

    def cost_changes(self, step: int) -> CostChange | None:
        """At the warm-up's end values are sampled for each batch, or ρ and r stop training."""
        if self.train_part == "occupancy" or step >= self.warmup_steps:
            return None
        return CostChange(self.warmup_steps, dearer=self.values == "online")

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters that no loss of the current step reaches."""
        busy = self.trains()
        groups = self.parameter_groups()
        idle = [one for name, group in groups.items() if name not in busy for one in group]
        if self.extraction == "reward_grad" and "q" in busy:
            idle.append(self.actor.raw_log_std)  # r is ascended at the mean alone
        return idle

    def _step(self) -> int | float:
        return math.inf if self._trainer is None else self.trainer.global_step

    def occupancy_loss(self, batch: FutureStateBatch) -> Tensor:
        """Eq. 8 on s_{t+Δt}, with the absorbing state past a true terminal."""
        observations, targets = self.normalizer.normalize(
            torch.stack([batch.observations, batch.future_observations])
        )
        history = History.before(batch)
        if history is not None:
            history = history.normalised(self.normalizer)
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
        inputs = torch.cat([observations, actions], dim=-1)
        return self._regression("q", inputs, self._td_target(batch))

    def baseline_loss(self, batch: FutureStateBatch) -> Tensor:
        """Regression of b(s) on the returns, or on Q at the data's actions, times (1 − γ).

        Its mean is over all policies of the data, whatever φ the values are of: an action is good
        if it does better than the actions in such states did, even those of a better policy.
        """
        observations = self.normalizer.normalize(batch.observations)
        if self.advantage == "returns":
            target = self._td_target(batch)
        else:
            target = frozen(self.q, observations, labels(batch)[0]).detach()
        return self._regression("baseline", observations, target)

    def _regression(self, name: str, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the squared error of Q or b for its inputs, (B, o + a) or (B, o)."""
        predicted = getattr(self, name)(inputs).squeeze(-1)
        self.log_scalar(f"{name}/mean", predicted.mean() / (1.0 - self.gamma))
        self.log_scalar(f"{name}/target_mean", target.mean() / (1.0 - self.gamma))
        return (predicted - target).square().mean()

    @torch.no_grad()
    def _td_target(self, batch: FutureStateBatch) -> Tensor:
        """(1 − γ) times the return of (s, a) (B,); of held-out rows it is always r + γ V(s')."""
        cache, value = self.cache, self.diffused_value
        if self.training and cache.returns is not None:
            return (1.0 - self.gamma) * cache.returns[batch.rows]
        if self.training and cache.next_values is not None:
            next_values = cache.next_values[batch.rows]
        else:
            next_values = value.next_values(batch, self.noise)
        return (1.0 - self.gamma) * (value.rewards(batch) + self.gamma * next_values)

    def on_train_batch_start(self, batch: FutureStateBatch, batch_idx: int) -> None:
        """Sample the values of all rows when ``values: cached`` is due."""
        since = self._step() - self.warmup_steps
        first_of_step = batch_idx % self.trainer.accumulate_grad_batches == 0
        if self.values == "online" or since < 0 or not first_of_step:
            return
        again = self.refresh_steps is not None and since % self.refresh_steps == 0
        if self.cache.next_values is None or again:
            self.cache.sample(self.diffused_value, self)
        if self.cache.returns is None and self.advantage == "returns":
            self.cache.follow_trajectories(self.diffused_value, self, self.return_trace)

    def cloning_loss(self, batch: FutureStateBatch) -> Tensor:
        """Behaviour cloning by likelihood: during warm-up V is that of the behaviour policy.

        With ``value_policy: latest`` the rows of older policies count in the mean as zeros.
        """
        actions, _ = labels(batch)
        observations = self.normalizer.normalize(batch.observations)
        likelihood = self.actor.log_prob(observations, actions)
        if (cloned := self._cloned(batch)) is not None:
            likelihood = torch.where(cloned, likelihood, 0.0)
        return -likelihood.mean()

    def _cloned(self, batch: FutureStateBatch) -> Tensor | None:
        """Which rows (B,) are the latest policy's, and so are cloned; None means all."""
        if self.latest_policy is None or batch.policy is None:
            return None
        return batch.policy == self.latest_policy

    def actor_loss(self, batch: FutureStateBatch) -> Tensor:
        """Loss of the policy extraction ``extraction``; no gradient reaches Q, r or ρ."""
        actions, _ = labels(batch)
        observations = self.normalizer.normalize(batch.observations)
        data = (self.actor, observations, actions)
        if self.advantage != "q":
            with torch.no_grad():
                returns = self.advantage == "returns"
                reached = self._td_target(batch) if returns else frozen(self.q, *data[1:])
                advantage = reached - self.baseline(observations).squeeze(-1)
            loss, logged = weighted_loss(*data, advantage, self.awr_temperature)
        elif self.extraction == "awr":
            loss, logged = awr_loss(*data, self.q, self.awr_temperature)
        elif self.extraction == "q_net":
            noise, unit = self.noise.normal(actions.shape), 1.0 / (1.0 - self.gamma)
            cloned = self._cloned(batch)
            loss, logged = q_loss(*data, self.q, noise, self.bc_coefficient, unit, cloned)
        else:
            loss, logged = reward_gradient_loss(*data, self.reward, self.bc_coefficient)
        for name, value in logged.items():
            self.log_scalar(f"actor/{name}", value)
        return loss

    def after_step(self) -> None:
        """Move the averages."""
        busy = self.trains()
        if "occupancy" in busy:
            self.occupancy.update_ema()
        if "actor" in busy and self.acting is not None:
            polyak_update_(self.acting, self.actor, self.actor_ema_rate)

    def policy(self) -> NetworkPolicy:
        """Act by the averaged actor's mean.

        Raises:
            ConfigError: Only the occupancy was trained, so there is no actor.
        """
        actor = self._acting()
        return NetworkPolicy(lambda rows: actor(self.normalizer.normalize(rows)), self.device)

    def _acting(self) -> GaussianPolicy:
        if self.train_part == "occupancy" or self.acting is None:
            raise ConfigError(
                "This DVFModule was pre-trained on states alone and has no policy yet; train the "
                "rest with train 'heads' or 'all' and 'pretrained' set to this checkpoint."
            )
        return self.acting

    # ---- checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the cached values too, which a resumed run must not sample again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_CACHE_KEY] = self.cache.next_values

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the cached values."""
        super().on_load_checkpoint(checkpoint)
        values = checkpoint.get(_CACHE_KEY)
        self.cache.next_values = None if values is None else values.to(self.device)
