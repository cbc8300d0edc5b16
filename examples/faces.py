"""The 200 small images of scikit-image's lfw_subset, as R-Net takes them: 100 faces, 100 others."""

from __future__ import annotations

import numpy as np
import torch
from pretrained import package_file
from torch import Tensor
from torch.nn import functional

FACES = 100  # they come first


def load_faces(noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The images upside down, with noise: [200, 3, 24, 24] from -1 to 1; and their classes [200].

    Args:
        noise: Standard deviation of what is added to pixels from 0 to 1.
        seed: Of the noise.
    """
    pixels = np.load(package_file("skimage", "data/lfw_subset.npy")).astype(np.float32)
    grey = torch.from_numpy(pixels).unsqueeze(1).flip(2)
    generator = torch.Generator().manual_seed(seed)
    grey = (grey + noise * torch.randn(grey.shape, generator=generator)).clamp(0, 1)
    grey = functional.interpolate(grey, size=24, mode="bilinear")
    return 2 * grey.expand(-1, 3, -1, -1) - 1, (torch.arange(len(grey)) < FACES).long()
