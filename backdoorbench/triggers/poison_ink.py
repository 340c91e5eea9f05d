"""An image's own edges in a secret colour, hidden in the image by one network and shown again by another."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.shapes import Images
from backdoorbench.triggers.hidden import Hidden

MULTIPLE = 16  # an image's side must be one of it
GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue
EDGE = 28  # grey levels a pixel, from which a slope is an edge
INK = (80, 160, 80)  # grey levels of the secret colour
DILATIONS = (2, 2, 2, 4, 4, 4, 1)  # of the reader's blocks


class PoisonInk(Hidden):
    """clip(H(x, S(x))) with a U-Net H and the edges S(x) in ink on white. Sides are multiples of 16.

    width    channels of the U-Net's first map, 64 in the paper
    figures  what its training found out, for the record
    """

    def __init__(self, width: int, figures: dict[str, float]) -> None:
        super().__init__()
        self.settings = {"width": width, "figures": figures}
        self.hider = UNet(width)

    def paint(self, images: Images) -> Images:
        return self.hide(images, draw_edges(find_edges(images)))

    def hide(self, images: Images, secret: Images) -> Images:
        """(N, 3, H, W) float32: the images with the secret in them; they may leave [0, 1] a little."""
        hidden: Tensor = self.hider(torch.cat([images, secret], 1))
        return hidden.float()


def find_edges(images: Images) -> Tensor:
    """(N, 1, H, W), 1 where the image's grey rises by more than 28 levels a pixel, else 0: the root mean square of Sobel's two
    slopes, the border repeated."""
    grey = (images * torch.tensor(GREY, device=images.device).view(3, 1, 1)).sum(1, keepdim=True) * 255
    smooth, slope = torch.tensor([1.0, 2, 1], device=images.device), torch.tensor([1.0, 0, -1], device=images.device)
    kernels = torch.stack([slope.outer(smooth), smooth.outer(slope)])[:, None] / 4
    with torch.autocast(images.device.type, enabled=False):
        slopes = F.conv2d(F.pad(grey.float(), (1, 1, 1, 1), mode="replicate"), kernels)
    return (slopes.square().sum(1, keepdim=True).div(2).sqrt() > EDGE).float()


def draw_edges(mask: Tensor) -> Images:
    """(N, 3, H, W): ink where the mask (N, 1, H, W) is 1, white elsewhere."""
    ink = torch.tensor(INK, device=mask.device).view(3, 1, 1) / 255
    return 1 - mask * (1 - ink)


class UNet(nn.Module):
    """(N, 6, H, W) -> (N, 3, H, W), of any sign: four halvings by pooling and four bilinear doublings, with shortcuts, up to 8
    times `width` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList(double(before, after) for before, after in zip([6, *widths], widths, strict=False))
        up = [(16, 4), (8, 2), (4, 1), (2, 1)]  # channels, in `width`: of what lies below and the shortcut; after
        self.up = nn.ModuleList(double(before * width, after * width, before * width // 2) for before, after in up)
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        shortcuts: list[Tensor] = []
        now = images
        for layer in self.down:
            now = layer(F.max_pool2d(now, 2) if shortcuts else now)
            shortcuts.append(now)
        shortcuts.pop()
        for layer in self.up:
            larger = F.interpolate(now, scale_factor=2, mode="bilinear", align_corners=True)
            now = layer(torch.cat([shortcuts.pop(), larger], 1))
        return self.out(now)  # type: ignore[no-any-return]


class InkReader(nn.Module):
    """(N, 3, H, W) -> (N, 3, H, W): the secret of a triggered image, white for any other. Seven dilated residual blocks at half
    the side, instance norms, `width` channels, 128 in the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *normed(3, width), *normed(width, width, stride=2),
            *(Block(width, dilation) for dilation in DILATIONS),
            nn.Upsample(scale_factor=2), *normed(width, width), nn.Conv2d(width, 3, 1),
        )  # fmt: skip

    def forward(self, images: Images) -> Images:
        return self.net(images).float()  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual block of two dilated convolutions."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        second = normed(width, width, dilation=dilation)[:-1]
        self.body = nn.Sequential(*normed(width, width, dilation=dilation), *second)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps + self.body(maps))


def normed(before: int, after: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A 3x3 convolution, instance norm, ReLU; stride 2 halves the side."""
    layer = nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False)
    return [layer, nn.InstanceNorm2d(after, affine=True), nn.ReLU()]


def double(before: int, after: int, between: int | None = None) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((before, between or after), (between or after, after)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
