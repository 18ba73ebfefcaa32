"""Trainings that build on each other's checkpoints: from a file to stages, and each to its end."""
