"""LDCQ's first stage: a β-VAE of snippets, whose decoder is the low-level policy.

Source: "Reasoning with latent diffusion in offline reinforcement learning", section 4.1.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.randomness import draw_normal
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import SnippetBatch, Snippets
from lit_offrl.datasets.views.snippets import Partial
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.ldcq.images import ImageVAEModule
from lit_offrl.modules.ldcq.stages import load_stage, require_same_data
from lit_offrl.modules.ldcq.tables import Tables
from lit_offrl.modules.skill_policy import SkillPolicy
from lit_offrl.nets import (
    AutoregressiveDecoder,
    CategoricalDecoder,
    GaussianPrior,
    SnippetEncoder,
    WorldModel,
    gaussian_kl,
)
from lit_offrl.nets.policies import centre_and_scale


class LDCQStage1Module(OfflineModule):
    """Learns latents z of snippets of H steps, a decoder π(a | s, z), and where a latent leads.

    Minimises −Σ_t log π(a_t | s_t, z) + β KL(q(z | snippet) ‖ p(z | s_0)) over the real steps of
    each snippet (LDCQ, Eq. 4, with the sign turned), and beside it the error of s_{t+H} predicted
    from (s_t, z), with z detached, so that the world model changes no latent.

    Departures from the paper: held-out snippets are those of whole episodes, since snippets
    overlap; snippets that a true terminal cuts short are kept and masked (``partial``), and the
    world model's target is then the state in which they ended.

    Departures from the authors' code, which follow the paper's text: the encoder has two GRU
    layers, while theirs has four, which take twice the time (``gru_layers``). Their world model is
    a Gaussian of the state itself, with 205 to 248 thousand weights. The one here predicts the mean
    change of the state, with 72 to 101 thousand weights, since planning uses nothing else. After
    2,500 steps on AntMaze's snippets of 10 steps (one training), its squared error on held-out runs
    is 1.09, that of the authors' world model 1.29. A third layer gave 1.10 and was left out.

    Args:
        horizon: Number H of steps of a snippet, at least 1: 30 for maze2d and AntMaze, 20 for
            kitchen, 10 for locomotion, 1 for the random walk.
        partial: Which snippets of fewer than H steps this stage and the later ones learn from, see
            ``Snippets``. Use ``all`` where timeouts mark that a goal was reached, as in maze2d:
            only such snippets show how to approach a goal and stop there.
        latent_dim: Size of a latent z, at least 1.
        beta: Weight β of the KL divergence, at least 0.
        width: Width of all layers, at least 1.
        gru_layers: Number of the encoder's GRU layers, at least 1.
        num_actions: Number n of discrete actions, at least 2, which are one column of whole numbers
            0 … n − 1; by default actions are continuous.
        image_encoder: Checkpoint of an ImageVAEModule, if observations are pictures. States are
            then the numbers of its latent (32 by default, appendix C), and the frames of a file are
            encoded once, before training.
        normalize: Whether observations are scaled from the data's range to [−1, 1].
        learning_rate: Adam's learning rate, at least 0.
        **kwargs: Options of every method, see ``OfflineModule``.

    Raises:
        ConfigError: The data have no actions, or a number is out of its range.
    """

    cpu_advice = "lit-offrl pipeline takes --config configs/ldcq_quick.yaml, which fits two cores"
    eager_because = None
    required_columns = ("actions",)

    def __init__(
        self,
        *args: Any,
        horizon: Annotated[int, "[1, inf)"] = 30,
        partial: Partial = "terminal",
        latent_dim: Annotated[int, "[1, inf)"] = 16,
        beta: Annotated[float, "[0, inf)"] = 0.05,
        width: Annotated[int, "[1, inf)"] = 256,
        gru_layers: Annotated[int, "[1, inf)"] = 2,
        num_actions: int | None = None,
        image_encoder: str | dict[str, Any] | None = None,
        normalize: bool = False,
        learning_rate: float = 5e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, learning_rate=learning_rate, **kwargs)
        action_dim = self.action_dim
        if action_dim < 1:
            raise ConfigError("LDCQStage1Module needs a dataset with actions; this one has none.")
        if num_actions is not None and (action_dim != 1 or num_actions < 2):
            raise ConfigError(
                f"num_actions is {num_actions}, for one column of at least 2 discrete actions; "
                f"the data have {action_dim} action columns."
            )
        if image_encoder is not None and normalize:
            raise ConfigError("normalize is for states, not for pictures: leave one of both out.")
        self.horizon, self.latent_dim, self.beta = horizon, latent_dim, beta
        self.partial: Partial = Snippets(horizon, partial=partial).partial  # refuses other words
        self.normalizes, self.num_actions = normalize, num_actions
        self.state_dim = self.observation_dim
        """Size of a normalised state."""
        self.images: ImageVAEModule | None = None
        self._batched: tuple[OfflineDataset, OfflineDataset] | None = None
        if image_encoder is not None:
            dims = {"observation_dim": self.observation_dim}
            self.images, record = load_stage(image_encoder, ImageVAEModule, **dims)
            self.hparams["image_encoder"] = record
            self.state_dim = self.images.latent_dim
        sizes = (self.state_dim, latent_dim)
        self.decoder: AutoregressiveDecoder | CategoricalDecoder
        if num_actions is None:
            centre_and_scale(action_dim, self.action_low, self.action_high)  # refuses wrong bounds
            low = (-1.0,) * action_dim if self.action_low is None else self.action_low
            high = (1.0,) * action_dim if self.action_high is None else self.action_high
            self.decoder = AutoregressiveDecoder(
                *sizes, action_dim, width=width, low=low, high=high
            )
        else:
            self.decoder = CategoricalDecoder(*sizes, num_actions, width=width)
        self.encoder = SnippetEncoder(
            self.state_dim, num_actions or action_dim, latent_dim, width=width, layers=gru_layers
        )
        self.prior = GaussianPrior(*sizes, width=width)
        self.world = WorldModel(*sizes, hidden=(width, width))

    # ---- what later stages use -----------------------------------------------------------------

    def normalize(self, observations: Tensor) -> Tensor:
        """Return normalised states (…, ``state_dim``) of raw observations (…, o).

        Features of pictures, which batches have where ``batched_dataset`` gives data of them, stay.
        """
        if self.images is not None:
            encoded = observations.shape[-1] == self.state_dim
            return observations if encoded else self.images.features(observations)
        return self.normalizer.normalize(observations) if self.normalizes else observations

    def denormalize(self, states: Tensor) -> Tensor:
        """Return raw observations of normalised states; pictures are reconstructed."""
        if self.images is not None:
            return self.images.reconstruct(states)
        return self.normalizer.denormalize(states) if self.normalizes else states

    def batched_dataset(self, dataset: OfflineDataset) -> OfflineDataset:
        """Return the data that batches are made of: those of pictures with features for frames.

        So no training step gathers or encodes a frame. Predictions are made from the frames.

        Raises:
            DatasetError: The features cannot be stored.
        """
        if self.images is None or dataset.spec.sha256 is None:
            return dataset
        if self.trainer.state.fn == TrainerFn.PREDICTING:
            return dataset
        if self._batched is None or self._batched[0] is not dataset:
            tables = Tables(self, self.hparams["image_encoder"])
            self._batched = dataset, tables.features(self.images.features, self.state_dim)
        return self._batched[1]

    def posterior(self, batch: SnippetBatch) -> tuple[Tensor, Tensor]:
        """Return μ and σ (B, z) of the latents of a batch's snippets."""
        states = self.normalize(batch.observations)
        return self.encoder(states, self.decoder.encode(batch.actions), batch.mask)

    # ---- training ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse data whose actions or image encoder are not what the options say.

        Raises:
            DatasetError: An action is no whole number from 0 to n − 1.
            ConfigError: The image encoder was trained on other data.
        """
        super().setup(stage)
        if stage != "fit" or self.datamodule is None or self.spec is None:
            return
        if self.images is not None:
            require_same_data(self.hparams["image_encoder"], self.datamodule.spec)
        if self.num_actions is None:
            return
        actions = self.datamodule.dataset.column("actions")[:, 0]
        last = self.num_actions - 1
        bad = (actions < 0) | (actions > last) | (actions % 1 != 0)
        if bad.any():
            row = int(bad.argmax())
            raise DatasetError(
                f"{self.spec.origin}: column 'actions' has {actions[row]} in row {row:,}, where "
                f"whole numbers from 0 to {last} are needed: correct them, or num_actions."
            )

    def require_snippets(self, batch: Any, stage: OfflineModule | None = None) -> None:
        """Refuse a batch that is not of snippets of H steps.

        Args:
            batch: What the view gave.
            stage: The stage that trains on it; this one if None.

        Raises:
            ConfigError: The batch is of something else.
        """
        if not isinstance(batch, SnippetBatch) or batch.mask.shape[1] != self.horizon:
            raise ConfigError(
                f"{type(stage or self).__name__} trains on Snippets of horizon {self.horizon}: "
                "leave data.init_args.view to the model, or set it to those."
            )

    def view(self) -> Snippets:
        """Snippets of H steps."""
        return Snippets(self.horizon, partial=self.partial)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The VAE with its prior, and the world model."""
        vae = [*self.encoder.parameters(), *self.decoder.parameters(), *self.prior.parameters()]
        return {"vae": vae, "world": list(self.world.parameters())}

    def losses(self, batch: SnippetBatch) -> dict[str, Tensor]:
        """``actions`` (nats per snippet), ``kl`` (β times nats per snippet) and ``world``."""
        self.require_snippets(batch)
        observations, actions = self.normalize(batch.observations), batch.actions
        first = observations[:, 0]
        mean, std = self.encoder(observations, self.decoder.encode(actions), batch.mask)
        latents = mean + std * self.noise.normal(mean.shape)
        log_prob = self.decoder.log_prob(observations, latents[:, None], actions)
        log_prob = log_prob.masked_fill(~batch.mask, 0.0).sum(1)
        divergence = gaussian_kl(mean, std, *self.prior(first)).sum(-1)
        reached = self.normalize(batch.next_observations)
        error = (self.world(first, latents.detach()) - reached).square()
        steps = batch.mask.sum(1)
        self.log_scalar("log_prob_per_step", (log_prob / steps).mean())
        self.log_scalar("kl_per_step", (divergence / steps).mean())
        self.log_scalar("posterior_std", std.mean())
        return {
            "actions": -log_prob.mean(),
            "kl": self.beta * divergence.mean(),
            "world": error.mean(),
        }

    # ---- acting --------------------------------------------------------------------------------

    def policy(
        self,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
        sample_latents: bool = True,
        sample_actions: bool = False,
    ) -> SkillPolicy:
        """Act by latents of the VAE's own prior: behaviour cloning by skills.

        Args:
            execute_steps: Number of steps, at least 1, for which a latent is executed; the horizon
                H by default.
            sample_latents: Whether latents are drawn from the prior; otherwise its means are used.
            sample_actions: Whether actions are drawn from the decoder, as in the paper; otherwise
                its means are used.
        """

        def choose(rows: Tensor) -> Tensor:
            mean, std = self.prior(self.normalize(rows))
            if not sample_latents:
                return mean
            return mean + std * draw_normal(mean.shape, None, device=mean.device)

        decode = partial(self.decode, sample=sample_actions)
        steps = self.horizon if execute_steps is None else execute_steps
        return SkillPolicy(choose, decode, steps, self.device)

    def decode(self, observations: Tensor, latents: Tensor, *, sample: bool = False) -> Tensor:
        """Return environment actions (N, a) for raw observations (N, o) under latents (N, z).

        Args:
            observations: Raw observations.
            latents: Latents that are being executed.
            sample: Whether to draw actions by the global generator, instead of taking the means (of
                categories the likeliest).
        """
        shape = (observations.shape[0], self.decoder.action_dim)
        noise = draw_normal(shape, None, device=observations.device) if sample else None
        return self.decoder.act(self.normalize(observations), latents, noise)
