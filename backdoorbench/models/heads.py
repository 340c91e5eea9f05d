"""Classifiers of timm that are no linear layer, made the linear layer that computes the same, since defenses work on that.

A 1x1 convolution on the pooled map (ResNetV2, DLA, DPN) becomes the layer of its weights. Two heads whose logits are averaged
(RepViT, SwiftFormer, EfficientFormer, LeViT, distilled DeiT) become one layer that reads the features of both side by side. In
state dicts they stay two, under timm's names, so that files of timm's are read and written.
"""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


def with_linear_classifier(net: nn.Module) -> nn.Module | None:
    """A copy of a network with a linear classifier in place of one that is none; None where nothing of that kind is known."""
    changed: Any = copy.deepcopy(net)
    if _is_convolution(changed):
        _flatten_before_classifier(changed)
    elif _has_two_heads(changed):
        _join(changed, "forward_head")
    elif _has_two_heads(getattr(changed, "head", None)):
        _join(changed.head, "forward")
    else:
        return None
    return changed  # type: ignore[no-any-return]


# --- 1x1 convolutions ------------------------------------------------------------------------------------------------


def make_classifier_linear(net: Any) -> None:
    """Replaces a 1x1-convolution classifier of timm's ClassifierHead by the linear layer that computes the same."""
    from timm.layers.classifier import ClassifierHead

    head = getattr(net, "head", None)
    if not (isinstance(head, ClassifierHead) and head.use_conv and isinstance(head.fc, nn.Conv2d)):
        return
    linear = nn.Linear(head.fc.in_channels, head.fc.out_channels, head.fc.bias is not None)
    head.fc, head.use_conv, head.flatten = _like(linear, head.fc), False, nn.Identity()
    head.global_pool.flatten = nn.Flatten(1)


def _is_convolution(net: Any) -> bool:
    pooled = isinstance(getattr(getattr(net, "global_pool", None), "flatten", None), nn.Identity)
    return pooled and isinstance(getattr(net, "flatten", None), nn.Flatten) and _classifier(net) is not None


def _classifier(net: Any) -> str | None:
    return next((name for name in ("fc", "classifier") if isinstance(getattr(net, name, None), nn.Conv2d)), None)


def _flatten_before_classifier(net: Any) -> None:
    name = _classifier(net)
    assert name is not None
    conv = getattr(net, name)
    linear = _fresh(conv.in_channels, conv.out_channels, conv.bias is not None, conv.weight.device)
    setattr(net, name, _like(linear, conv))
    net.global_pool.flatten, net.flatten = nn.Flatten(1), nn.Identity()


def _fresh(features: int, classes: int, bias: bool, device: torch.device) -> nn.Linear:
    """A linear layer to be filled, for which no random number is drawn."""
    return skip_init(nn.Linear, features, classes, bias, device=device)  # type: ignore[no-untyped-call, no-any-return]


def _like(linear: nn.Linear, conv: nn.Conv2d) -> nn.Linear:
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    return linear


# --- two heads -------------------------------------------------------------------------------------------------------


class Half(nn.Sequential):
    """What one head reads, after its norm, beside zeros in place of what the other reads. before: a head's parts but the last."""

    def __init__(self, before: dict[str, nn.Module], is_first: bool) -> None:
        super().__init__(OrderedDict(before))
        self.is_first = is_first

    def forward(self, features: Tensor) -> Tensor:  # (N, D) -> (N, 2 D)
        for part in self:
            features = part(features)
        none = torch.zeros_like(features)
        return torch.cat([features, none] if self.is_first else [none, features], 1)


def _has_two_heads(module: Any) -> bool:
    heads = [getattr(module, name, None) for name in ("head", "head_dist")]
    return all(isinstance(head, nn.Module) and _linear(head) is not None for head in heads)


def _linear(head: nn.Module) -> nn.Linear | None:
    """The layer that a head ends in: itself, or the last of its parts."""
    last = head if isinstance(head, nn.Linear) else next(reversed(list(head.children())), None)
    return last if isinstance(last, nn.Linear) else None


def _join(module: Any, method: str) -> None:
    """One linear layer in place of two heads whose mean `method` returns: of their halves that is all features, halved."""
    heads = (module.head, module.head_dist)
    first, second = (_linear(head) for head in heads)
    places = [_place(head, name) for head, name in zip(heads, ("head", "head_dist"), strict=True)]
    assert first is not None and second is not None
    joined = _fresh(2 * first.in_features, first.out_features, True, first.weight.device)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([first.weight, second.weight], 1) / 2)
        joined.bias.copy_((first.bias + second.bias) / 2)
    module.head, module.head_dist = (
        Half({name: part for name, part in head.named_children() if part is not _linear(head)}, head is heads[0])
        for head in heads
    )
    module.joined = joined
    kind = type(module)

    def forward(self: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
        return self.joined(2 * getattr(kind, method)(self, x, *rest, **named))

    own = {method: forward, "state_dict": _apart, "_load_from_state_dict": _together, "_apart": (kind, places)}
    module.__class__ = type(kind.__name__, (kind,), own)  # a class, so that copies keep to themselves


def _place(head: nn.Module, name: str) -> str:
    """Where a head's last layer stands: `head`, or `head.linear`."""
    inner = [child for child, part in head.named_children() if part is _linear(head)]
    return ".".join([name, *inner])


def _apart(self: Any, *given: Any, prefix: str = "", **named: Any) -> dict[str, Any]:
    """The state dict of a module with joined heads, in which they are two: what each adds to the mean of both."""
    kind, places = self._apart
    found: dict[str, Any] = kind.state_dict(self, *given, prefix=prefix, **named)
    weights = found.pop(f"{prefix}joined.weight").chunk(2, 1)
    bias = found.pop(f"{prefix}joined.bias")
    for place, weight in zip(places, weights, strict=True):
        found[f"{prefix}{place}.weight"], found[f"{prefix}{place}.bias"] = 2 * weight, bias.clone()
    return found


def _together(self: Any, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Loads a state dict in which the heads are two."""
    kind, places = self._apart
    weights, biases = ([state.pop(f"{prefix}{place}.{part}", None) for place in places] for part in ("weight", "bias"))
    if not any(part is None for part in (*weights, *biases)):
        state[f"{prefix}joined.weight"] = torch.cat(weights, 1) / 2
        state[f"{prefix}joined.bias"] = sum(biases) / 2
    kind._load_from_state_dict(self, state, prefix, *rest)
