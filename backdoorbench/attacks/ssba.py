"""SSBA: hide one bit string in every image by a trained encoder; each image carries it in a residual of its own.

Idea     Fixed patterns are found by comparing images. An encoder and a decoder learn together to pass bits through an image
         unseen; with one bit string for all images, the encoder is a trigger that looks different on each.
Paper    arXiv 2012.03816
Follows  BackdoorBench's variant: an encoder after "Artificial GAN fingerprints", 100 bits; cross-entropy of the bits read, and
         once 0.9 of them are, 10 times the squared error of the image, risen from 0 between 1000 and 4000 steps later; Adam
         1e-4, batches of 64, 20 epochs, images as they are
Departs  1. the output is added to the image, which starts near the identity and is clearer in the end (BackdoorBench: the
            sigmoid of the output is the image; `attack.residual=false`)
         2. the bits of the trigger are any random ones (BackdoorBench: a word of an error-correcting code, 100 bits long too)
         3. weights start from He's normal ones (BackdoorBench: torch's usual ones, from which the bits are read later or never)
         4. a training that reads fewer than 0.6 of its bits after 2000 steps starts anew from other weights
         5. a tenth of the images, 500 at most, is left out and measured on
         6. rows are rounded to uint8 (BackdoorBench truncates)
         7. 20 passes, as theirs, over fewer than 25,600 images are fewer than 8000 steps, in which the image may never weigh in
            full: there `attack.encoder_epochs` is to be raised
Cost     the encoder: 20 passes of 0.2 GMAC an image at 32 px, once for a data set: other rates, seeds and victims find it
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from backdoorbench.attacks.hidden import CodeAttack, Pair
from backdoorbench.errors import check_range
from backdoorbench.shapes import Images
from backdoorbench.triggers.hidden_code import HiddenCode


@dataclass(frozen=True)
class SSBA(CodeAttack):
    """The sample-specific attack, BackdoorBench's encoder."""

    residual: bool
    image_weight: float
    image_wait: int
    image_rise: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.image_weight", self.image_weight, 0)
        check_range("attack.image_wait", self.image_wait, 0)
        check_range("attack.image_rise", self.image_rise, 1)

    def writer(self, size: int, figures: dict[str, float]) -> HiddenCode:
        return HiddenCode("ssba", size, self.bits, self.encoder_width, self.residual, figures)

    def loss(self, pair: Pair, images: Images, written: Images, missed: Tensor, steps_per_epoch: int) -> Tensor:
        return missed + self.image_weight * self.rise(pair) * F.mse_loss(written.clamp(0, 1), images)

    def rise(self, pair: Pair) -> Tensor:
        return ((pair.since - self.image_wait) / self.image_rise).clamp(0, 1)

    def image_share(self, pair: Pair) -> float:
        return float(self.rise(pair))
