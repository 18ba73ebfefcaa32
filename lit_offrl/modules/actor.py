"""Methods with one actor: what imitation and methods with a critic have in common.

An action here may be a chunk of h successive actions: networks, critics and bounds see its h · a
numbers as one action. The view makes the chunks, and the policy executes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.policy import Policy
from lit_offrl.datasets.normalizers import Normalization, Normalizer, make_normalizer
from lit_offrl.datasets.views import AdvantageLabelled, Transitions, View
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.plan_policy import ChunkPolicy
from lit_offrl.modules.policies import NetworkPolicy


class ActorModule(OfflineModule):
    """A method with one actor on transitions of one step, or of a chunk of actions.

    A subclass builds ``self.actor`` and gives ``losses`` and, where it acts by more than one pass
    of the actor, ``policy``, by ``self.acting``. In it ``action_dim`` is h · a, the size of a
    chunk.

    Args:
        normalize: How observations are scaled before any network takes them: ``false`` leaves them
            as they are, ``true`` or ``min_max`` maps the range of the data to [-1, 1], and
            ``mean_std`` subtracts the mean and divides by the standard deviation + 1e-3.
        weight_decay: AdamW's decay of the actor's weights, at least 0; 0 is Adam.
        chunk: Number h of actions, at least 1, that the policy chooses at once, and that critics,
            if the method has any, value together (Q-chunking, Li et al. 2025).
        execute_steps: Number of steps, 1 to h, for which a chunk is executed before the next one is
            chosen; all h by default.
        n_step: Number n of steps, at least h, whose rewards a target sums before it bootstraps; h
            by default.
        **kwargs: Options of every method, see ``OfflineModule``; ``decay`` is the actor's alone.

    Raises:
        ConfigError: The data have no actions, or a number is out of its range.
    """

    gamma: float = 0.99
    """Discount γ of the rewards that targets sum, which a method with critics sets."""
    actor: nn.Module
    normalizer: Normalizer  # type: ignore[assignment]

    def __init__(
        self,
        *args: Any,
        normalize: Normalization = False,
        weight_decay: Annotated[float, "[0, inf)"] = 0.0,
        chunk: Annotated[int, "[1, inf)"] = 1,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
        n_step: Annotated[int | None, "[1, inf)"] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.action_dim < 1:
            needed = " and ".join(self.required_columns)
            raise ConfigError(
                f"{type(self).__name__} needs a dataset with {needed}; this one has no actions."
            )
        Transitions(chunk=chunk, n_step=n_step)  # refuses what cannot be
        self.chunk, self.n_step = chunk, n_step
        self.execute_steps = self._executed(execute_steps or chunk)
        self.action_dim *= chunk
        self.action_low, self.action_high = (
            None if bounds is None else [*bounds] * chunk
            for bounds in (self.action_low, self.action_high)
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

    def view(self) -> View:
        """Transitions of the method's chunks and steps."""
        return self.transitions()

    def transitions(self, **options: Any) -> Transitions:
        """``Transitions`` of the method's chunks, steps and discount."""
        return Transitions(chunk=self.chunk, n_step=self.n_step, gamma=self.gamma, **options)

    def setup(self, stage: str) -> None:
        """Set up as any method; the batches of a view that the user chose must be the method's.

        Raises:
            ConfigError: Its rows have chunks of another size, or sum rewards by another discount.
        """
        super().setup(stage)
        view = getattr(self.datamodule, "view", None)
        there: dict[str, float] = {}
        if isinstance(view, Transitions | AdvantageLabelled):
            there["chunk"] = view.chunk
        if isinstance(view, Transitions) and view.steps > 1 and "rewards" in self.required_columns:
            there["gamma"] = view.gamma
        for name, value in there.items():
            if value != getattr(self, name):
                raise ConfigError(
                    f"data.init_args.view has {name} {value} and {type(self).__name__} "
                    f"{getattr(self, name)}: give both the same, or leave the view to the model."
                )

    def acting(self, act: Callable[[Tensor], Tensor], execute_steps: int | None = None) -> Policy:
        """Make a policy of a function from raw observations (E, o) to chunks (E, h · a).

        Args:
            act: The function.
            execute_steps: Number of steps for which a chunk is executed; the module's own if None.

        Raises:
            ConfigError: A chunk has fewer.
        """
        steps = self._executed(execute_steps or self.execute_steps)
        if self.chunk == 1:
            return NetworkPolicy(act, self.device)
        return ChunkPolicy(act, self.chunk, steps, self.device)

    def policy(self, *, execute_steps: Annotated[int | None, "[1, inf)"] = None) -> Policy:
        """Act by the actor's output for a state: the mean, where it is a distribution.

        Args:
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
        """
        return self.acting(
            lambda rows: self.actor(self.normalize_observations(rows)), execute_steps
        )

    def _executed(self, steps: int) -> int:
        if not 1 <= steps <= self.chunk:
            raise ConfigError(
                f"execute_steps is {steps}, and a chunk has {self.chunk} actions: give one of "
                f"1 to {self.chunk}, or a larger chunk."
            )
        return steps
