"""Latent diffusion-constrained Q-learning (LDCQ), one stage a file."""
