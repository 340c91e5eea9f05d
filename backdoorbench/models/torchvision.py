"""Any classifier of torchvision by its name, with a stem that suits small images.

as_is  the network as torchvision builds it
small  a ResNet's stem becomes a 3x3 convolution of stride 1 without pooling; another network is refused
auto   `small` below 128 px for a ResNet, else `as_is`

Layers keep torchvision's names, so that weights trained with it fit.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from backdoorbench.errors import ModelError, did_you_mean, first_line
from backdoorbench.models.base import LARGE, Classifier, ModelSpec
from backdoorbench.models.outputs import choose_logits, settle_layout
from backdoorbench.models.stems import shrink_stem


@dataclass(frozen=True)
class TorchvisionSpec(ModelSpec):
    """architecture  as torchvision.models.list_models() prints it
    stem          see the head of this file
    """

    architecture: str
    stem: Literal["auto", "as_is", "small"]

    def classifier(self, classes: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Classifier:
        model = super().classifier(classes, size, mean, std)
        choose_logits(model, classes, None, self.name)  # which runs it: some do not read small images
        settle_layout(model, f"model '{self.name}'")
        return model

    def net(self, classes: int, size: int) -> nn.Module:
        from torchvision import models

        known = models.list_models(module=models)
        if self.architecture not in known:
            raise ModelError(
                f"torchvision knows no classifier '{self.architecture}'.{did_you_mean(self.architecture, known)} All of them: "
                f'python -c "from torchvision import models; print(*models.list_models(module=models))"'
            )
        try:
            net: Any = models.get_model(self.architecture, weights=None, num_classes=classes, **self._more(size))
        except Exception as error:
            raise ModelError(
                f"torchvision could not build '{self.architecture}' for images of {size} px ({first_line(error)}). Choose a "
                f"larger dataset.size, or another model.architecture."
            ) from error
        is_resnet = isinstance(net, models.ResNet)
        if self.stem == "small" and not is_resnet:
            raise ModelError(
                f"model.stem is 'small', but of torchvision's networks only ResNets can be changed so, not "
                f"'{self.architecture}'. Set model.stem=as_is, or choose one of those."
            )
        if is_resnet and (self.stem == "small" or (self.stem == "auto" and size < LARGE)):
            shrink_stem(net)
        if hasattr(net, "aux_logits"):  # of a GoogLeNet or Inception: more logits, while it trains
            net.aux_logits = False
        if isinstance(net, models.Inception3):
            _skip_auxiliary(net.AuxLogits)
        return net  # type: ignore[no-any-return]

    def _more(self, size: int) -> dict[str, Any]:
        """What some networks ask for beside the number of classes."""
        if self.architecture.startswith("vit_"):
            return {"image_size": size}
        return {"init_weights": True} if self.architecture in ("googlenet", "inception_v3") else {}


def _skip_auxiliary(head: Any) -> None:
    """Lets an Inception pass its second head by, whose logits nobody reads, and which needs larger images than the rest; its
    weights stay where files have them."""

    class Skipped(type(head)):  # type: ignore[misc]
        def forward(self, maps: Tensor) -> None:
            return None

    head.__class__ = Skipped
