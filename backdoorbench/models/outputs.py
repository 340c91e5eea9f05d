"""The logits of a network that somebody else wrote: which of several results they are, and what they were before a softmax.

A network here returns (N, K) logits alone. One that returns a tuple or a dict keeps its modules and their names; what it returns
is replaced by the part that holds the logits. A softmax at its end would be taken twice by every loss: as a layer it is taken
out, as a function it is undone by a logarithm, which gives logits up to a constant of each row, which no loss and no
prediction sees.
"""

import copy
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench.errors import ModelError, first_line, join_words, shown
from backdoorbench.models.base import Classifier, evaluating
from backdoorbench.models.layouts import ChannelByChannel, layout_of
from backdoorbench.models.surgery import trace
from backdoorbench.shapes import Images

log = logging.getLogger(__name__)

PROBES = 4  # random images that tell what a network returns
UNREADABLE = (
    "cannot read maps that lie channels last (as .view cannot): it runs channel by channel, which is slower on most machines; "
    ".flatten(1) or .reshape in place of .view mends that."
)
SLACK = 1e-3  # by which the sum of probabilities may miss 1


class Part:
    """A hook that replaces what a network returns by one part of it."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __call__(self, _: nn.Module, given: Any, result: Any) -> Any:
        if isinstance(result, Tensor):  # as some return in one mode only
            return result
        return (
            getattr(result, self.key) if isinstance(self.key, str) and hasattr(result, self.key) else result[self.key]
        )


def logarithm(_: nn.Module, given: Any, result: Tensor) -> Tensor:
    """A hook that makes logits of probabilities."""
    return result.clamp_min(torch.finfo(torch.float32).tiny).log()


def choose_logits(model: Classifier, classes: int, chosen: int | str | None, name: str) -> None:
    """Makes the network return its logits alone. Raises ModelError where it does not run, or where none of what it
    returns, or more than one, has a column for each class.

    chosen  a place or a name among what it returns; None for the only one that can be"""
    result = _answer(model, name)
    parts = {"": result} if isinstance(result, Tensor) else dict(_parts(result))
    fitting = [key for key, part in parts.items() if tuple(part.shape) == (PROBES, classes)]
    listed = join_words([f"{key}: {tuple(part.shape[1:])}".lstrip(": ") for key, part in parts.items()]) or "no tensor"
    if isinstance(result, Tensor):
        if not fitting:
            raise ModelError(
                f"model '{name}' returns {tuple(result.shape[1:])} for each image; expected ({classes},), a logit for each "
                f"class. Choose a network for {classes} classes."
            )
        if chosen is not None:
            raise ModelError(
                f"model.output is {shown(chosen)}, but model '{name}' returns one tensor alone. Leave model.output out."
            )
        return
    if chosen is not None and chosen not in fitting:
        raise ModelError(
            f"model.output is {shown(chosen)}, but model '{name}' returns, for each image, {listed}; expected the place or the "
            f"name of what has {classes} numbers. Change model.output."
        )
    if chosen is None and len(fitting) != 1:
        found = f"model '{name}' returns, for each image, {listed}; expected {classes} logits, and {len(fitting)} of these can be"
        remedy = "Say which: model.output=PLACE." if fitting else f"Choose a network for {classes} classes."
        raise ModelError(f"{found} those. {remedy}")
    key = fitting[0] if chosen is None else chosen
    say(f"model '{name}' returns {len(parts)} tensors; its logits are {shown(key)}.")
    model.net.register_forward_hook(Part(key))


def settle_layout(model: Classifier, called: str, images: Images | None = None) -> None:
    """Has a network whose code cannot read maps that lie channels last read them channel by channel, and says so.

    called  what a message calls the network
    images  few, (N, 3, H, W), to try it on; random ones by default

    Raises what the network raises where it reads images in neither order."""
    images = _images(model) if images is None else images
    if layout_of(model, torch.device("cpu")) == torch.contiguous_format or _reads_channels_last(model, images):
        return
    model.to(memory_format=torch.contiguous_format)
    model.crop = nn.Sequential(model.crop, ChannelByChannel())
    say(f"{called} {UNREADABLE}")


def _reads_channels_last(model: Classifier, images: Images) -> bool:
    trial = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with evaluating(trial), torch.no_grad():
        try:
            trial(images.contiguous(memory_format=torch.channels_last))
        except RuntimeError:  # for its size as well, perhaps: the other order tells
            trial.to(memory_format=torch.contiguous_format)
            trial(images.contiguous())
            return False
    return True


def check_copies(model: Classifier, called: str, images: Images | None = None) -> None:
    """Sees that a copy of the network is one, and that gradients can be had of its logits: methods change copies, by the slopes
    of weights and of pixels. Says where no gradient reaches some of the weights.

    called, images  as of `settle_layout`

    Raises ModelError where a copy computes with weights of the network it was made of, or where no gradient reaches any."""
    pixels = (_images(model) if images is None else images).clone().requires_grad_()
    twin = copy.deepcopy(model)
    own, original = ([weight for weight in each.parameters() if weight.requires_grad] for each in (twin, model))
    asked = [*own, *original, pixels]
    slopes: tuple[Tensor | None, ...] = (None,) * len(asked)
    try:
        with evaluating(model), evaluating(twin), torch.enable_grad():
            answer = twin(pixels)
            if answer.requires_grad:
                slopes = torch.autograd.grad(answer.float().sum(), asked, allow_unused=True)
    except Exception as error:  # whatever a stranger's wrapper does in a backward pass of somebody else
        raise ModelError(
            f"no gradient can be taken of the logits of {called} ({first_line(error)[:300]}). Hand over the plain module that it "
            f"wraps, its .module for instance, or change its forward."
        ) from error
    if any(slope is not None for slope in slopes[len(own) : -1]):
        raise ModelError(
            f"a copy of {called} computes with the weights of the one it was copied from, as where a forward was replaced by a "
            f"function that holds its module; expected a copy of its own, since methods change a copy. Write that forward in "
            f"the module's class, or bind it: module.forward = types.MethodType(function, module)."
        )
    without = sum(slope is None for slope in slopes[: len(own)])
    if own and without == len(own):
        raise ModelError(
            f"no gradient leads from the logits of {called} to any of its weights, so that nothing can be trained; expected "
            f"some. Take out of its forward what detaches them: torch.no_grad(), .detach(), .data."
        )
    if without:
        say(f"no gradient reaches {without} of {len(own)} weights of {called}: what trains leaves these as they are.")


def undo_softmax(model: Classifier, name: str) -> None:
    """Makes a network that returns probabilities return what their softmax was taken of, or else their logarithms."""
    with evaluating(model), torch.no_grad():
        result = model(_images(model)).float()
    is_logarithm = bool((result <= SLACK).all()) and _sums_to_one(result.exp())
    if not is_logarithm and not ((result >= 0).all() and _sums_to_one(result)):
        return
    kind = "log-softmax" if is_logarithm else "softmax"
    runs = [call for call in trace(model, _images(model)) if isinstance(call.module, nn.Softmax | nn.LogSoftmax)]
    last = runs[-1] if runs else None
    if last is not None and last.output is not None and torch.allclose(last.output.float(), result, atol=SLACK):
        parent, _, child = last.name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
        say(f"model '{name}' ends in a {kind} layer, which was taken out: losses and defenses here work on logits.")
    elif is_logarithm:
        say(f"model '{name}' returns the logarithms of probabilities, which serve as logits.")
    else:
        model.net.register_forward_hook(logarithm)
        say(f"model '{name}' returns probabilities; their logarithms are taken for logits.")


@functools.cache
def say(text: str) -> None:
    """Says something once in a process, however often the network is built."""
    log.info(text)


def _sums_to_one(values: Tensor) -> bool:
    return bool(((values.sum(1) - 1).abs() < SLACK).all())


def _images(model: Classifier) -> Tensor:
    images = torch.rand(PROBES, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    return images.to(next(model.parameters(), images).device)


def _answer(model: Classifier, name: str) -> Any:
    try:
        with evaluating(model), torch.no_grad():
            return model(_images(model))
    except Exception as error:  # whatever a stranger's code does with a size that it was not made for
        raise ModelError(
            f"model '{name}' does not read images of {model.size} px with {model.channels} channels ({first_line(error)[:200]}). "
            f"Choose another dataset.size or model.channels, or options of the network that suit it."
        ) from error


def _parts(result: Any) -> Iterator[tuple[Any, Tensor]]:
    """The tensors that a network returned, by place or name."""
    if isinstance(result, Mapping):
        named = list(result.items())
    elif isinstance(result, list | tuple) and not hasattr(result, "_fields"):
        named = list(enumerate(result))
    else:  # a named tuple, or an object with attributes
        fields = getattr(result, "_fields", None) or list(vars(result) if hasattr(result, "__dict__") else ())
        named = [(field, getattr(result, field)) for field in fields]
    yield from ((key, part) for key, part in named if isinstance(part, Tensor))
