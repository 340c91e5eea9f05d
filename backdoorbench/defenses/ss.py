"""SS: leave out the training rows that spectral signatures suspect, and train anew.

Idea     The direction in which a class's features vary most separates its poisoned rows from the clean ones. Without the rows
         that lie farthest out along it an ordinary training learns no backdoor.
Paper    arXiv 1811.00636v1
Follows  algorithm 1, in the form that is detector=ss: R = the features of a class less their mean, v = the top right singular
         vector of R, score (r.v)^2; the rows that score highest are left out, 15 % (the authors' `percentile` 85); then a
         training from scratch on the rest
Departs  1. the share is taken of every class, since a defender does not know the target; the authors' code takes it of the
            target class alone
         2. r is centred, as in the paper; the authors' code and BackdoorBench's multiply the uncentred features
         3. features that the classifier reads, of images that are not augmented; BackdoorBench's are the last map, flattened,
            of augmented ones
         4. the share is fixed; the toolbox derives it from the true poison rate
         5. the victim's recipe trains; BackdoorBench trains 100 epochs of its own
         6. features are read in the victim's precision (train.precision=float32)
Cost     a forward pass over the training set, a singular value decomposition for each class, a whole training
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range, part
from backdoorbench.training.forward import penultimate_features
from backdoorbench.training.suspicion import highest, signatures, train_without


@dataclass(frozen=True)
class SS(Defense):
    """Spectral signatures as a filter. The record tells precision and recall of the rows that were left out.

    At a rate of 10 % the target class is half poisoned, and a fixed share of 15 % leaves most of the poison in."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "train"})
    starts_from: ClassVar[Literal["infected", "scratch"]] = "scratch"
    retrains: ClassVar[bool] = True

    remove_fraction: float

    def __post_init__(self) -> None:
        check_range("defense.remove_fraction", self.remove_fraction, 0, 1)

    def purify(self, scenario: Scenario) -> nn.Module:
        with scenario.autocast():
            features = penultimate_features(scenario.model, scenario.train)
        labels = scenario.train.labels.cpu()
        part(
            "defense.remove_fraction", self.remove_fraction, int(labels.bincount().max()), "images of the largest class"
        )
        scores = signatures(features, labels)
        return train_without(highest(scores, labels, self.remove_fraction), scores, scenario)
