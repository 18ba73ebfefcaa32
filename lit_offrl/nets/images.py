"""A convolutional encoder and decoder of small square pictures."""

from jaxtyping import Float
from torch import Tensor, nn

from lit_offrl.nets.snippets import GaussianHead

_CHANNELS = (32, 64, 128)  # each layer halves the side


class ImageEncoder(nn.Module):
    """q(z | picture) of flat pictures whose channels come last, as in D4RL's CARLA.

    Args:
        size: Side in pixels, a multiple of 8.
        latent_dim: Size z of a latent.
        width: Width of the head's hidden layers.
        channels: Number of channels, 3 for RGB.
    """

    def __init__(
        self, size: int = 48, latent_dim: int = 32, *, width: int = 256, channels: int = 3
    ) -> None:
        super().__init__()
        _check(size)
        self.shape = (size, size, channels)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *_CHANNELS), _CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.head = GaussianHead(_CHANNELS[-1] * (size // 8) ** 2, latent_dim, width)

    def forward(self, images: Float[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
        """Return μ and σ ``(B, z)`` of pictures ``(B, size · size · channels)``."""
        return self.head(self.convolutions(images.unflatten(-1, self.shape).permute(0, 3, 1, 2)))


class ImageDecoder(nn.Module):
    """Maps latents to flat pictures, with the options of the `ImageEncoder` that it undoes."""

    def __init__(
        self, size: int = 48, latent_dim: int = 32, *, width: int = 256, channels: int = 3
    ) -> None:
        super().__init__()
        _check(size)
        side, deepest = size // 8, _CHANNELS[-1]
        layers: list[nn.Module] = [nn.Linear(latent_dim, width), nn.ReLU()]
        layers += [nn.Linear(width, deepest * side**2), nn.Unflatten(1, (deepest, side, side))]
        for before, after in zip(_CHANNELS[::-1], (*_CHANNELS[-2::-1], channels), strict=True):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Float[Tensor, "B z"]) -> Float[Tensor, "B n"]:
        """Return pictures ``(B, size · size · channels)``, in the units of the encoder's."""
        return self.layers(latents).float().permute(0, 2, 3, 1).flatten(1)


def _check(size: int) -> None:
    if size < 8 or size % 8:
        raise ValueError(f"size is {size}; give a multiple of 8")
