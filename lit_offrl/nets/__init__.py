"""Networks: pure PyTorch, no Lightning, no knowledge of datasets or diffusion."""

from lit_offrl.nets.action_vae import ActionVAE, Perturbation
from lit_offrl.nets.advantages import AdvantageEncoding
from lit_offrl.nets.averages import frozen_copy, polyak_update_
from lit_offrl.nets.critics import EnsembleCritic, EnsembleDenseNetMLP, EnsembleMLP, glorot_
from lit_offrl.nets.decoders import AutoregressiveDecoder, CategoricalDecoder
from lit_offrl.nets.denoisers import DENOISERS, ActionDenoiser, MLPDenoiser, ResNetDenoiser
from lit_offrl.nets.embeddings import NumberEmbedding, sinusoidal, symexp, symlog
from lit_offrl.nets.images import ImageDecoder, ImageEncoder
from lit_offrl.nets.latent_critics import LatentCritic
from lit_offrl.nets.mlp import MLP, DenseNetMLP, Dropout
from lit_offrl.nets.perceiver import (
    Encoded,
    FutureCondition,
    PerceiverDenoiser,
    StatePerceiverDenoiser,
)
from lit_offrl.nets.policies import DeterministicPolicy, GaussianPolicy, TanhGaussianPolicy
from lit_offrl.nets.snippets import GaussianPrior, SnippetEncoder, WorldModel, gaussian_kl
from lit_offrl.nets.temporal_unet import TemporalUNet, TemporalValue
from lit_offrl.nets.transformer import ActionTransformer
from lit_offrl.nets.unet import UResNetDenoiser
from lit_offrl.nets.velocity import VelocityNet

__all__ = [
    "DENOISERS",
    "MLP",
    "ActionDenoiser",
    "ActionTransformer",
    "ActionVAE",
    "AdvantageEncoding",
    "AutoregressiveDecoder",
    "CategoricalDecoder",
    "DenseNetMLP",
    "DeterministicPolicy",
    "Dropout",
    "Encoded",
    "EnsembleCritic",
    "EnsembleDenseNetMLP",
    "EnsembleMLP",
    "FutureCondition",
    "GaussianPolicy",
    "GaussianPrior",
    "ImageDecoder",
    "ImageEncoder",
    "LatentCritic",
    "MLPDenoiser",
    "NumberEmbedding",
    "PerceiverDenoiser",
    "Perturbation",
    "ResNetDenoiser",
    "SnippetEncoder",
    "StatePerceiverDenoiser",
    "TanhGaussianPolicy",
    "TemporalUNet",
    "TemporalValue",
    "UResNetDenoiser",
    "VelocityNet",
    "WorldModel",
    "frozen_copy",
    "gaussian_kl",
    "glorot_",
    "polyak_update_",
    "sinusoidal",
    "symexp",
    "symlog",
]
