"""A network of the user's own: whatever a function or class of a package named in `plugins` makes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from backdoorbench.config.build import Function, imported
from backdoorbench.errors import ModelError, first_line, shown
from backdoorbench.models.base import Classifier, ModelSpec
from backdoorbench.models.outputs import check_copies, choose_logits, settle_layout, undo_softmax

CLASSES = (
    "classes",
    "num_classes",
    "n_classes",
    "num_class",
    "class_num",
    "nclasses",
)  # what makers call the number of classes
SIZES = ("size", "image_size", "img_size", "input_size")
CHANNELS = ("channels", "in_channels", "in_chans", "num_channels", "input_channels")


@dataclass(frozen=True)
class ModuleSpec(ModelSpec):
    """target   package.module:factory, a class or function that returns the network
    options  what it is called with, by name; the number of classes, the side in pixels and the channels of the images are added
             under the usual names, where it has parameters of these
    output   which of its results are the logits, by place or by name; null where only one can be
    """

    target: Function | None
    options: Any
    output: int | str | None

    def classifier(self, classes: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Classifier:
        model = super().classifier(classes, size, mean, std)
        choose_logits(model, classes, self.output, self.name)
        settle_layout(model, f"model '{self.name}'")
        undo_softmax(model, self.name)
        check_copies(model, f"model '{self.name}'")
        return model

    def net(self, classes: int, size: int) -> nn.Module:
        facts = {CLASSES: classes, SIZES: size, CHANNELS: self.reads.channels}
        factory, options = self._factory(), self._options()
        try:
            parameters = inspect.signature(factory).parameters
        except (TypeError, ValueError):  # of some that are written in C
            parameters = {}  # type: ignore[assignment]
        known = {name: fact for names, fact in facts.items() for name in names if name in parameters}
        try:
            net = factory(**(known | options))
        except Exception as error:  # a stranger's code
            given = ", ".join(f"{name}={value!r}" for name, value in (known | options).items())
            raise ModelError(
                f"model.target={self.target} could not be called with ({given[:200]}): {type(error).__name__}: "
                f'{first_line(error)}. Give what it needs: "model.options={{name: value}}".'
            ) from error
        if not isinstance(net, nn.Module):
            raise ModelError(
                f"model.target={self.target} returned a {type(net).__name__}; expected an nn.Module. Name the class, or a "
                f"function that returns the network."
            )
        if layer := next(filter(is_of_keras, net.modules()), None):
            raise ModelError(
                f"model.target={self.target} returned a network with layers of Keras ({type(layer).__name__}), which train() and "
                f"eval() do not set: they evaluate throughout, without dropout and with batch norms that learn no statistics, "
                f"and are called otherwise each time they are made; expected layers of PyTorch. Build the network of those, and "
                f"copy its weights there."
            )
        plain: nn.Module = getattr(
            net, "_orig_mod", net
        )  # of torch.compile: methods read layers, which its wrapper hides
        return plain

    def _factory(self) -> Callable[..., Any]:
        if self.target is None:
            raise ModelError(
                "model.target is null; expected package.module:factory, a class or function that returns the network. Name it, "
                "and the folder of its package: model.target=mine.networks:WideNet --plugin DIR."
            )
        return imported(self.target, "model.target", "a class or function that returns the network")

    def _options(self) -> dict[str, Any]:
        if self.options is not None and not isinstance(self.options, Mapping):
            raise ModelError(
                f'model.options is {shown(self.options)}; expected names and values. Write "model.options={{depth: 16}}".'
            )
        return {str(name): value for name, value in (self.options or {}).items()}


def is_of_keras(module: nn.Module) -> bool:
    """Whether a module is a layer of Keras on its torch backend."""
    return any(kind.__module__.partition(".")[0] == "keras" for kind in type(module).__mro__)
