"""Any network of timm (huggingface/pytorch-image-models) by its name, with a stem that suits small images.

timm's networks are made for 224 px: at 32 px most run, but their stem leaves a map of one pixel. `stem` decides:

as_is  the network as timm builds it
small  families below are rebuilt to read small images; another network is refused
auto   `small` below 128 px where the family is known, else `as_is`; a transformer is told its image size at any size, and so is
       any other network that reads no images of that size until it is told

ResNet, ResNetV2       3x3 stem convolution of stride 1, no pooling: the last map has side/8 pixels a side
ViT, DeiT, Swin        at least 8x8 patches: patch 4 at 32 px, 8 at 64 px
ConvNeXt               patches of one pixel: the last map has side/8 pixels a side

A classifier that is no linear layer becomes the equal one where that can be (heads.py). With pretrained weights, a replaced stem
convolution starts from random ones, and images are normalised by the data set's statistics, not by those the weights were trained
with.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench.config.acts import Acts, Only
from backdoorbench.errors import ModelError, did_you_mean
from backdoorbench.models.base import LARGE, Classifier, ModelSpec
from backdoorbench.models.heads import make_classifier_linear, with_linear_classifier
from backdoorbench.models.outputs import settle_layout
from backdoorbench.models.stems import shrink_stem

RESNETS = ["resnet", "resnetv2"]  # families are timm's modules, since names alone do not tell them apart
TRANSFORMERS = ["vision_transformer", "deit", "swin_transformer", "swin_transformer_v2"]
DYNAMIC = ["vision_transformer", "deit"]  # some read several sizes, by code that surgery cannot cut; one is enough
CONVNEXTS = ["convnext"]


@dataclass(frozen=True)
class TimmSpec(ModelSpec):
    """timm_name   as timm.list_models() prints it; a tag behind a dot chooses pretrained weights
    pretrained  fetch timm's weights (needs network, once); for another number of classes the classifier is drawn anew
    stem        see the head of this file
    """

    acts: ClassVar[Acts] = {"pretrained": Only("checkpoint", None)}  # whose weights replace all others

    timm_name: str
    pretrained: bool
    stem: Literal["auto", "as_is", "small"]

    def classifier(self, classes: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Classifier:
        model = super().classifier(classes, size, mean, std)
        settle_layout(model, f"model '{self.name}'")
        return model

    def net(self, classes: int, size: int) -> nn.Module:
        import timm
        from timm.models import is_model_in_modules

        if not timm.is_model(self.timm_name):
            raise ModelError(
                f"timm knows no model '{self.timm_name}'.{did_you_mean(self.timm_name, timm.list_models())} "
                f'All of them: python -c "import timm; print(*timm.list_models())"'
            )
        arch = self.timm_name.split(".")[0]
        family = next((kind for kind in (RESNETS, TRANSFORMERS, CONVNEXTS) if is_model_in_modules(arch, kind)), None)
        small = self.stem == "small" or (self.stem == "auto" and size < LARGE)
        if self.stem == "small" and family is None:
            raise ModelError(
                f"model.stem is 'small', but of timm's networks only ResNet, ResNetV2, ViT, DeiT, Swin and ConvNeXt "
                f"can be changed so, not '{self.timm_name}'. Set model.stem=as_is, or choose one of those."
            )
        options: dict[str, Any] = {}
        if family is TRANSFORMERS and self.stem != "as_is":
            options["img_size"] = size
            if is_model_in_modules(arch, DYNAMIC):
                options["dynamic_img_size"] = False
            if small:
                options["patch_size"] = patch(size)
        if family is CONVNEXTS and small:
            options["patch_size"] = 1
        net = self._create(classes, size, options)
        if family is RESNETS and small:
            shrink_stem(net)
        make_classifier_linear(net)
        forget_biases(net)
        try:
            logits = self._try(net, size)
        except ModelError:
            told = self._told(classes, size) if family is None and self.stem == "auto" else None
            if told is None:
                raise
            net, logits = told
        changed = with_linear_classifier(net)
        is_same = changed is not None and (
            logits.is_meta or torch.allclose(self._try(changed, size), logits, atol=1e-4)
        )
        return changed if changed is not None and is_same else net

    def _create(self, classes: int, size: int, options: dict[str, Any]) -> nn.Module:
        import timm

        try:
            net: nn.Module = timm.create_model(self.timm_name, self.pretrained, num_classes=classes, **options)
        except Exception as error:
            raise self._refusal(error, size) from error
        return net

    def _told(self, classes: int, size: int) -> tuple[nn.Module, Tensor] | None:
        """The network told that its images have `size` px, and its logits of two; None where timm cannot tell it so."""
        try:
            net = self._create(classes, size, {"img_size": size})
            make_classifier_linear(net)
            forget_biases(net)
            return net, self._try(net, size)
        except ModelError:
            return None

    def _try(self, net: nn.Module, size: int) -> Tensor:
        """The logits of two images. Raises ModelError unless `net` reads images of `size` px: timm tells only while it runs."""
        modes = {module: module.training for module in net.modules()}
        net.eval()
        try:
            with torch.no_grad():
                logits: Tensor = net(torch.linspace(0, 1, 6 * size**2).view(2, 3, size, size))
        except Exception as error:
            usual = getattr(net, "pretrained_cfg", {}).get("input_size", (3, size, size))[-1]
            larger = f"dataset.size={usual}, which it is made for" if usual != size else "a larger dataset.size"
            other = "" if self.stem == "auto" else "model.stem=auto, "
            raise ModelError(
                f"timm's '{self.timm_name}' with stem={self.stem} does not read images of {size} px "
                f"({first_line(error)}). Choose {other}{larger}, or another model.timm_name."
            ) from error
        for module, mode in modes.items():
            module.training = mode
        return logits

    def _refusal(self, error: Exception, size: int) -> ModelError:
        if self.pretrained:
            return ModelError(
                f"The pretrained weights of timm's '{self.timm_name}' could not be loaded ({first_line(error)}). They "
                f"need a network connection and a name that has weights. Without them set model.pretrained=false; to "
                f"start from weights on this machine, also pass their file as model.checkpoint."
            )
        return ModelError(
            f"timm could not build '{self.timm_name}' for images of {size} px ({first_line(error)}). Set "
            f"model.stem=as_is, or choose another model.timm_name."
        )


def forget_biases(net: nn.Module) -> None:
    """Lets attention read its biases anew in each pass. LeViT, TinyViT, EfficientFormer and EfficientViT keep those of the first
    pass in eval mode until somebody calls `train()`: weights that are loaded or perturbed in between would be mixed with them."""
    for module in net.modules():
        if hasattr(module, "attention_bias_cache") and hasattr(module, "get_attention_biases"):
            object.__setattr__(module, "get_attention_biases", MethodType(_attention_biases, module))


def _attention_biases(module: Any, device: torch.device) -> Tensor:
    biases: Tensor = module.attention_biases[:, module.attention_bias_idxs]
    return biases


def patch(size: int) -> int:
    """The largest patch that divides `size` and leaves at least 8x8 patches (1 where nothing does).

    >>> [patch(size) for size in (8, 28, 32, 64, 96)]
    [1, 2, 4, 8, 12]
    """
    return max((side for side in range(1, size // 8 + 1) if size % side == 0), default=1)


def first_line(error: Exception) -> str:
    """The start of another library's message, to quote in ours."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
