"""Methods with one actor: what imitation and methods with a critic have in common."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.normalizers import Normalization, Normalizer, make_normalizer
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.policies import NetworkPolicy


class ActorModule(OfflineModule):
    """A method with one actor on one-step transitions.

    A subclass builds ``self.actor`` and gives ``losses`` and, where it acts by more than one pass
    of the actor, ``policy``.

    Args:
        normalize: How observations are scaled before any network takes them: ``false`` leaves them
            as they are, ``true`` or ``min_max`` maps the range of the data to [-1, 1], and
            ``mean_std`` subtracts the mean and divides by the standard deviation + 1e-3.
        weight_decay: AdamW's decay of the actor's weights, at least 0; 0 is Adam.
        **kwargs: Options of every method, see ``OfflineModule``; ``decay`` is the actor's alone.

    Raises:
        ConfigError: The data have no actions, or a number is out of its range.
    """

    actor: nn.Module
    normalizer: Normalizer  # type: ignore[assignment]

    def __init__(
        self,
        *args: Any,
        normalize: Normalization = False,
        weight_decay: Annotated[float, "[0, inf)"] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.action_dim < 1:
            needed = " and ".join(self.required_columns)
            raise ConfigError(
                f"{type(self).__name__} needs a dataset with {needed}; this one has no actions."
            )
        self.normalize, self.weight_decay = normalize, weight_decay
        self.normalizer = make_normalizer(normalize, self.observation_dim)

    @property
    def bounds(self) -> dict[str, Any]:
        """Lower and upper bounds of the actions, by the names that networks have for them."""
        return {"low": self.action_low, "high": self.action_high}

    def normalize_observations(self, observations: Tensor) -> Tensor:
        """Scale observations as the networks take them."""
        return self.normalizer.normalize(observations) if self.normalize else observations

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The actor's weights, without those of its average."""
        return {"actor": [p for p in self.actor.parameters() if p.requires_grad]}

    def learning_rate_of(self, network: str, step: int) -> float:
        """The actor's rate may decay; the critics' does not."""
        return super().learning_rate_of(network, step) if network == "actor" else self.learning_rate

    def weight_decay_of(self, network: str) -> float:
        """Only the actor's weights decay."""
        return self.weight_decay if network == "actor" else 0.0

    def policy(self) -> NetworkPolicy:
        """Act by the actor's output for a state: the mean, where it is a distribution."""
        return NetworkPolicy(
            lambda rows: self.actor(self.normalize_observations(rows)), self.device
        )
