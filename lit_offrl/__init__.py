"""lit-offrl: offline reinforcement learning on PyTorch Lightning.

Nothing heavy is imported here, so that ``lit-offrl --help`` answers at once.
"""

__version__ = "0.1.0"
