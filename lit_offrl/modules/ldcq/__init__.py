"""Latent diffusion-constrained Q-learning (LDCQ), one stage a file."""

from lit_offrl.modules.ldcq.images import ImageVAEModule
from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module

__all__ = ["ImageVAEModule", "LDCQStage1Module"]
