"""How alike two batches of images are: PSNR and SSIM, an image at a time, differentiable."""

import torch
from torch import Tensor

from backdoorbench.shapes import Images

WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels


def psnr(clean: Images, other: Images) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB; infinite for equal images."""
    return -10 * (clean - other).square().mean((1, 2, 3)).log10()


def ssim(clean: Images, other: Images) -> Tensor:
    """(N,) structural similarity (Wang et al. 2004): Gaussian windows of 11 pixels, sigma 1.5, inside the image; channels
    averaged."""
    clean, other = clean.double(), other.double()  # a variance is a small difference
    down, across = (windows(side, clean.device) for side in clean.shape[2:])

    def mean(values: Images) -> Images:
        return down @ values @ across.T

    first, second = mean(clean), mean(other)
    variances = mean(clean.square()) - first.square(), mean(other.square()) - second.square()
    covariance = mean(clean * other) - first * second
    small, smaller = 0.01**2, 0.03**2
    light = (2 * first * second + small) / (first.square() + second.square() + small)
    shape = (2 * covariance + smaller) / (variances[0] + variances[1] + smaller)
    return (light * shape).mean((1, 2, 3)).float()


def local_change(clean: Images, other: Images) -> Tensor:
    """(N,) the largest mean absolute change in any of SSIM's windows around a pixel. It sees a small patch in a corner,
    which means over the image dilute, and which windows inside the image hardly reach: the image is mirrored at its edge."""
    wide = torch.nn.functional.pad((other - clean).abs().double(), [WINDOW // 2] * 4, mode="reflect")
    down, across = (windows(side, clean.device) for side in wide.shape[2:])
    return (down @ wide @ across.T).mean(1).amax((1, 2)).float()


def windows(side: int, device: torch.device) -> Tensor:
    """(side - 10, side) float64: the weights of each window along one axis. Two products are faster than a convolution, which
    has no quick kernel for float64 on a CPU."""
    steps = torch.arange(side, dtype=torch.float64, device=device)
    away = steps - steps[: side - WINDOW + 1, None] - WINDOW // 2  # pixels from a window's middle
    weights = torch.exp(-0.5 * (away / SIGMA) ** 2) * (away.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)
