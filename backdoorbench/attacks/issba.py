"""ISSBA: SSBA by the encoder that its authors took, trained for images that look alike as well as for bits that are read.

Idea     An encoder and a decoder learn together to pass bits through an image unseen; with one bit string for all images, the
         encoder is a trigger that looks different on each.
Paper    arXiv 2012.03816
Follows  BackdoorBox and backdoor-toolbox, after StegaStamp (arXiv 1904.05343): 20 bits, a decoder behind a spatial
         transformer, Adam 1e-4, batches of 32, 20 epochs, of which 2 for the bits alone; then 1.5 times their cross-entropy, 2
         times the squared residual and 1.5 times the unlikeness of the images
Departs  1. unlikeness is 1 - SSIM, which needs no weights from elsewhere (theirs: LPIPS, features of a pretrained AlexNet)
         2. no discriminator (theirs is not trained unless asked for, and its answer weighs 0.5 all the same)
         3. test images are not trained on (BackdoorBox: training and test images)
         4. weights start from He's normal ones, as StegaStamp's do (BackdoorBox: torch's usual ones)
         5. a training that reads fewer than 0.6 of its bits after 2000 steps starts anew from other weights
         6. a tenth of the training images, 500 at most, is left out and measured on
Cost     the encoder: 20 passes of 0.2 GMAC an image at 32 px, once for a data set: other rates, seeds and victims find it
"""

from dataclasses import dataclass

from torch import Tensor

from backdoorbench.attacks.hidden import CodeAttack, Pair
from backdoorbench.errors import check_range
from backdoorbench.shapes import Images
from backdoorbench.tensors.similarity import ssim
from backdoorbench.triggers.hidden_code import HiddenCode


@dataclass(frozen=True)
class ISSBA(CodeAttack):
    """The sample-specific attack, its authors' encoder."""

    bits_epochs: int
    bits_weight: float
    residual_weight: float
    unlikeness_weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.bits_epochs", self.bits_epochs, 0)
        check_range("attack.bits_weight", self.bits_weight, 0)
        check_range("attack.residual_weight", self.residual_weight, 0)
        check_range("attack.unlikeness_weight", self.unlikeness_weight, 0)

    def writer(self, size: int, figures: dict[str, float]) -> HiddenCode:
        return HiddenCode("issba", size, self.bits, self.encoder_width, True, figures)

    def loss(self, pair: Pair, images: Images, written: Images, missed: Tensor, steps_per_epoch: int) -> Tensor:
        residual = written - images  # the whole of it: clipping would hide what leaves [0, 1]
        seen = self.residual_weight * residual.square().mean()
        seen = seen + self.unlikeness_weight * (1 - ssim(images, written.clamp(0, 1)).mean())
        return self.bits_weight * missed + (pair.steps >= self.bits_epochs * steps_per_epoch) * seen

    def image_share(self, pair: Pair) -> float:
        return float(self.encoder_epochs > self.bits_epochs)
