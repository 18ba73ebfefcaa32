"""Latent diffusion-constrained Q-learning (LDCQ), one stage a file."""

from lit_offrl.modules.ldcq.images import ImageVAEModule
from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module
from lit_offrl.modules.ldcq.stage2 import LDCQStage2Module
from lit_offrl.modules.ldcq.stage3 import LDCQStage3Module

__all__ = ["ImageVAEModule", "LDCQStage1Module", "LDCQStage2Module", "LDCQStage3Module"]
