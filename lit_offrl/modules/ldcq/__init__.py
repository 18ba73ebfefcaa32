"""Latent diffusion-constrained Q-learning (LDCQ), one stage a file."""

from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module

__all__ = ["LDCQStage1Module"]
