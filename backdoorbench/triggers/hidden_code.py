"""A bit string that one network hides in every image, and the network that reads it back."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.shapes import Images
from backdoorbench.triggers.hidden import Hidden

Variant = Literal["ssba", "issba"]

MULTIPLE = 32  # an image's side must be one of it
PLANE = 16  # side of the map that SSBA's encoder makes of the bits


class HiddenCode(Hidden):
    """clip(x + E(x, code)), or sigmoid(E(x, code)) where `residual` is false: each image gets a residual of its own.

    variant  ssba: the bits become 3 maps of 16x16, enlarged, and two convolutions follow the last shortcut; issba: the bits
             become an image, all is shifted by -0.5, and one does
    size     side of the images, a multiple of 32; bits: length of the code
    width    channels of the first map, 32 in the papers: 1,069,315 (ssba, 32 px, 100 bits), 1,047,011 parameters (issba, 20)
    figures  what its training found out, for the record
    """

    code: Tensor

    def __init__(
        self,
        variant: Variant,
        size: int,
        bits: int,
        width: int,
        residual: bool,
        figures: dict[str, float],
    ) -> None:
        super().__init__()
        self.settings = {
            "variant": variant, "size": size, "bits": bits, "width": width, "residual": residual, "figures": figures,
        }  # fmt: skip
        self.residual = residual
        self.register_buffer("code", torch.zeros(bits))  # 0 or 1
        self.encoder = Encoder(variant, size, bits, width)

    def paint(self, images: Images) -> Images:
        return self.write(images, self.code.expand(len(images), -1))

    def write(self, images: Images, codes: Tensor) -> Images:
        """(N, 3, H, W) float32, images with `codes` (N, bits) in them; with a residual they may leave [0, 1] a little."""
        written: Tensor = self.encoder(images, codes).float()
        return images + written if self.residual else written.sigmoid()


class Encoder(nn.Module):
    """(N, 3, H, W) images and (N, bits) codes in {0, 1} -> (N, 3, H, W), of any sign: four halvings and four doublings, with
    shortcuts between."""

    def __init__(self, variant: Variant, size: int, bits: int, width: int) -> None:
        super().__init__()
        plane, self.shift = (PLANE, 0.0) if variant == "ssba" else (size, 0.5)
        self.repeats = size // plane
        self.spread = nn.Sequential(nn.Linear(bits, 3 * plane**2), nn.ReLU(), nn.Unflatten(1, (3, plane, plane)))
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(
            convolution(before, after, stride)
            for before, after, stride in zip([6, *widths], widths, [1, 2, 2, 2, 2], strict=False)
        )
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for level in range(4, 0, -1):
            after = widths[level - 1]
            doubling = [nn.Upsample(scale_factor=2), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(widths[level], after, 2)]
            self.up.append(nn.Sequential(*doubling, nn.ReLU()))
            self.merge.append(convolution(2 * after + (6 if level == 1 else 0), after))
        refine = [convolution(width, width)] if variant == "ssba" else []
        self.out = nn.Sequential(*refine, nn.Conv2d(width, 3, 1))
        draw_weights(self, self.out[-1])

    def forward(self, images: Images, codes: Tensor) -> Tensor:
        maps = F.interpolate(self.spread(codes - self.shift), scale_factor=self.repeats)
        shortcuts = [torch.cat([images - self.shift, maps], 1)]
        for layer in self.down:
            shortcuts.append(layer(shortcuts[-1]))
        first, now = shortcuts.pop(0), shortcuts.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            parts = [shortcuts.pop(), up(now)]
            now = merge(torch.cat(parts if shortcuts else [*parts, first], 1))
        return self.out(now)  # type: ignore[no-any-return]


class CodeReader(nn.Module):
    """(N, 3, H, W) -> (N, bits) logits: above 0 where the code has a 1. 441,284 parameters for ssba at 32 px and 100 bits.

    variant  issba: a spatial transformer, which starts as the identity, straightens the image first"""

    def __init__(self, variant: Variant, size: int, bits: int, width: int) -> None:
        super().__init__()
        self.shift = 0.0 if variant == "ssba" else 0.5
        self.straighten = Straighten(size, width) if variant == "issba" else nn.Identity()
        widths = [width, width, 2 * width, 2 * width, 2 * width, 4 * width, 4 * width]
        steps = zip([3, *widths], widths, [2, 1, 2, 1, 2, 2, 2], strict=False)
        last = self.values(size, width)
        self.read = nn.Sequential(
            *(convolution(before, after, stride) for before, after, stride in steps),
            nn.Flatten(), nn.Linear(last, 512), nn.ReLU(), nn.Linear(512, bits),
        )  # fmt: skip
        draw_weights(self.read, self.read[-1])

    def forward(self, images: Images) -> Tensor:
        return self.read(self.straighten(images - self.shift))  # type: ignore[no-any-return]

    @staticmethod
    def values(size: int, width: int) -> int:
        """How many numbers its convolutions make of an image, from which all bits are read."""
        return 4 * width * (size // MULTIPLE) ** 2


class Straighten(nn.Module):
    """A spatial transformer (arXiv 1506.02025): (N, 3, H, W) -> the same, each image under an affine map of its own."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        layers = [convolution(before, after, 2) for before, after in zip([3, *widths], widths, strict=False)]
        last = nn.Linear(128, 6)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
        self.place = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * (size // 8) ** 2, 128), nn.ReLU(), last
        )

    def forward(self, images: Tensor) -> Tensor:
        theta = self.place(images).view(-1, 2, 3).float()
        with torch.autocast(images.device.type, enabled=False):  # a grid in bfloat16 would be off by pixels
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            return F.grid_sample(images.float(), grid, align_corners=False)


def convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution and ReLU; stride 2 halves the side."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.ReLU())


def draw_weights(network: nn.Module, last: nn.Module) -> None:
    """He's normal weights and no biases, but for the last layer: through so many layers torch's usual ones, a third of the
    variance, let next to nothing of a code pass, and its reading begins late or never."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer is not last:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
