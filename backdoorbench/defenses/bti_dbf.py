"""BTI-DBF (U): invert the trigger by decoupling benign features, and unlearn what the inversion generates.

Idea     Clean predictions need only part of the last feature map. A generator that moves the other part, and little else, makes
         images such as the trigger makes; tuned on them with their true labels, the network forgets it.
Paper    Xu et al., Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features, ICLR 2024 (no arXiv
         version read); its settings also in arXiv 2410.09838
Follows  the authors' code: a U-Net learns the identity (50 passes), a mask on the last map learns what is benign (20), the U-Net
         learns to move the rest within bounds (30), the network is tuned on batches with a tenth of generated images on
         cross-entropy and on features that stay where the clean ones are (30), Adam 1e-4, batch norm in train mode; 5 rounds,
         from the second with a pull towards the class that the first one found; Adam's moments outlast the rounds
Departs  1. the identity is learnt on cross-entropy with the clean predictions as targets of the generated images' ones; the
            code swaps the two, and feeds it probabilities
         2. distances between images are in the network's normalised units, as theirs; theirs does not normalise GTSRB
         3. the last map is found by tracing, before pooling; transformers are refused
         4. the mask is learnt on a copy in train mode, whose statistics are thrown away with it; theirs then teaches
            the generator
         5. the generator's blocks have batch norm and ReLU, and what grows its maps halves their channels; the library of which
            the code's U-Net comes has instance norm and leaky ReLU, and keeps them
         6. what the target is read from is not augmented; theirs is
         7. augmentation as the data set says; their code mirrors GTSRB's signs, too (dataset.augment.flip=true)
         8. the variant that purifies inputs, (P), is another method and not here
         9. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `pretrain_epochs` passes of U-Net and network over the holdout; in each round `mask_epochs` of the network's end,
         `generator_epochs` of both, and `epochs` of the network, twice each image
"""

import itertools
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import Loss, fit, make_optimizer
from backdoorbench.training.inversion import Inversion, Inverter


@dataclass(frozen=True)
class BTIDBF(Defense):
    """Inversion and unlearning in turn. The target that the inversion points at is noted in the record."""

    inversion: Annotated[Inversion, BESIDE]
    epochs: int
    lr: float

    def __post_init__(self) -> None:
        check_range("defense.epochs", self.epochs, 0)
        check_range("defense.lr", self.lr, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, passed = scenario.model, itertools.count()
        optimizer: Optimizer | None = None  # one for all rounds
        for turn, inverter in enumerate(self.inversion.turns(scenario, self.name)):
            recipe = inverter.recipe("unlearn", self.epochs, self.lr)
            optimizer = optimizer or make_optimizer(list(model.parameters()), recipe, scenario.device)
            fit(
                model,
                scenario.holdout,
                recipe,
                scenario.stream.child(f"unlearn{turn}"),
                loss=unlearning(inverter),
                optimizer=optimizer,
                after_epoch=lambda _: scenario.probe(model, next(passed)),
            )
        return model


def unlearning(inverter: Inverter) -> Loss:
    """Cross-entropy of mixed batches under their true labels, and how far their features are from the clean ones."""

    def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        features, mixed = inverter.stem(images), inverter.stem(inverter.mix(images))
        return F.cross_entropy(inverter.head(mixed).float(), labels) + F.mse_loss(mixed.float(), features.float())

    return loss
