"""A policy that is a flow of actions: what FQL and IFQL share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from lit_offrl.common.randomness import Generator
from lit_offrl.diffusion import flow_loss, make_flow_sampler, repeat_encoded
from lit_offrl.modules.actor import ActorModule
from lit_offrl.nets import VelocityNet
from lit_offrl.nets.mlp import Activation, LayerNorms
from lit_offrl.nets.policies import centre_and_scale

FlowSamplerName = Literal["euler", "heun"]


class FlowActor(nn.Module):
    """π(a | s) by a flow of actions scaled to [−1, 1], which takes normal noise to the data's.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        hidden: Widths of the hidden layers of the velocity's network.
        activation: Their activation.
        sampler: Name of what integrates the velocity.
        sampling_steps: Number of its steps.
        low: Lower bounds (a,); −1 if None.
        high: Upper bounds (a,); 1 if None.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        activation: str,
        sampler: str,
        sampling_steps: int,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        centre, scale = centre_and_scale(action_dim, low, high)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.action_dim = action_dim
        self.net = VelocityNet(action_dim, observation_dim, hidden, activation)
        self.sampler = make_flow_sampler(sampler, sampling_steps)

    def scaled(self, actions: Tensor) -> Tensor:
        """Actions in the environment's units as numbers in [−1, 1]."""
        return (actions - self.centre) / self.scale

    def clipped(self, unit: Tensor) -> Tensor:
        """Actions in the environment's units of numbers that are clipped to [−1, 1]."""
        return self.centre + self.scale * unit.clamp(-1.0, 1.0)

    def loss(self, observations: Tensor, actions: Tensor, noise: Generator) -> Tensor:
        """Flow matching's loss of each row (B,) for the data's actions (B, a) in states (B, o)."""
        velocity = partial(self.net.velocity, encoded=self.net.encode(observations))
        return flow_loss(velocity, self.scaled(actions), generator=noise)

    def sample(
        self,
        observations: Tensor,
        *,
        number: int = 1,
        noise: Generator = None,
        initial_noise: Tensor | None = None,
    ) -> Tensor:
        """Draw actions (S, number, a), clipped at the flow's end alone; states are encoded once.

        Args:
            observations: Normalised (S, o).
            number: Actions a state.
            noise: Where the numbers come from; the global generator if None.
            initial_noise: Standard normal (S · number, a), state-major, in place of a draw.
        """
        rows, encoded = observations.shape[0], repeat_encoded(self.net.encode(observations), number)
        drawn = self.sampler.sample(
            partial(self.net.velocity, encoded=encoded),
            (rows * number, self.action_dim),
            generator=noise,
            device=observations.device,
            initial_noise=initial_noise,
        )
        return self.clipped(drawn).view(rows, number, self.action_dim)


class FlowActorModule(ActorModule):
    """A method with a flow of the data's actions, and with critics.

    A subclass builds the flow by ``self.flow_actor()``. Weights begin as in the authors' code.
    LayerNorms divide by √(variance + 1e-5), where the authors' have 1e-6; this changes losses of
    around 2 by less than 1e-4.

    Args:
        hidden: Widths of the hidden layers of all networks.
        activation: Activation of all networks. The authors' code uses JAX's approximation,
            ``gelu_tanh``, which is off by 5e-4 at most and slower on a CPU.
        layer_norm: Where the critics have LayerNorms: ``true`` puts one before each activation,
            ``after`` one after it, as in the authors' code, and ``false`` none.
        sampler: Solver of the flow's differential equation; ``heun`` evaluates the network twice in
            each step.
        sampling_steps: Number of the solver's steps, at least 1.
        **kwargs: Options of the method's other bases, see ``ActorModule``.
    """

    def __init__(
        self,
        *args: Any,
        hidden: Sequence[int] = (512, 512, 512, 512),
        activation: Activation = "gelu",
        layer_norm: LayerNorms = "after",
        sampler: FlowSamplerName = "euler",
        sampling_steps: Annotated[int, "[1, inf)"] = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args, hidden=hidden, activation=activation, layer_norm=layer_norm, **kwargs
        )
        self.flow_actor = partial(
            FlowActor,
            self.observation_dim,
            self.action_dim,
            hidden,
            activation,
            sampler,
            sampling_steps,
            **self.bounds,
        )
