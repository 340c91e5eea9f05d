"""Where to cut, prune and listen in a network: found by watching one forward pass, never by layer names.

Every function takes a whole `Classifier`: pixels in [0, 1] in, crop and normalisation inside, and a `size` attribute.
Module names are those of `model.named_modules()`, such as `net.layer4.1.conv2`. Every function leaves weights, modes
and hooks as it found them, and raises ModelError, with the reason, where a network has no answer.

    trace                              what ran, in order, with the tensors that went in and came out
    classifier_head, classifier_name   the last linear layer
    split_head, penultimate            everything before it
    stages, as_map                     the last feature map of each resolution; tokens laid out as a map
    batch_norms, conv_norm_pairs, prunable_channels
    late_convolution, insert_before    where a layer of one's own goes, and how it gets there
    registered_pairs                   convolutions and batch norms as they were registered, not as data flow
    activations                        what named modules read or return, while a `with` lasts
    stem_cut, parameter_share          the network in two halves

Two ideas carry the file. Data flow is known by identity: module B reads what module A returned if it is the same tensor
object *and* nobody wrote into it in between (its version counter stands still); that tells a chain of layers from an
in-place residual addition. And a network is cut by symbolic tracing (torch.fx) that looks only inside the modules
around the cut, so every other layer keeps its own code; the halves hold the model's own layers, and a run compares them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from backdoorbench.errors import ModelError, did_you_mean
from backdoorbench.models.base import evaluating
from backdoorbench.shapes import Images

# --- one forward pass, watched ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Call:
    """One run of one module.

    caller   name of the module that was running when this one was called; None for the model itself
    input    its first tensor argument, and that tensor's version on entry; None where it took no tensor
    output   what it returned, and that tensor's version on leaving; None where that is no single tensor
    """

    name: str
    module: nn.Module
    caller: str | None
    input: Tensor | None
    input_version: int
    output: Tensor | None
    output_version: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's; empty where there is none."""
        return () if self.output is None else tuple(self.output.shape)

    def reads(self, other: "Call") -> bool:
        """Whether this module's input is exactly what `other` returned."""
        return self.input is not None and self.input is other.output and self.input_version == other.output_version

    def returns(self, other: "Call") -> bool:
        """Whether this module's output is exactly what `other` returned."""
        return self.output is not None and self.output is other.output and self.output_version == other.output_version


def trace(model: nn.Module, images: Images) -> list[Call]:
    """Every module run of one evaluation pass over `images`, in the order in which they ended; the last is the model's.

    Holds every intermediate tensor, so pass few images.
    """
    calls: list[Call] = []
    running: list[tuple[str, Tensor | None, int]] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        running.append((names[module], tensor, 0 if tensor is None else tensor._version))

    def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        name, tensor, version = running.pop()
        output = result if isinstance(result, Tensor) else None
        caller = running[-1][0] if running else None
        calls.append(Call(name, module, caller, tensor, version, output, 0 if output is None else output._version))

    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        with evaluating(model), torch.no_grad():  # inference mode would hide versions
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _probe(model: nn.Module) -> Images:
    """Two random images, always the same, of the side and on the device that the model works with."""
    size = getattr(model, "size", None)
    if not isinstance(size, int):
        raise ModelError(
            f"{_kind(model)} has no `size`, the side of the images it reads, so it cannot be examined. Wrap the "
            f"network in backdoorbench.models.base.Classifier."
        )
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.to(next(model.parameters(), images).device)


def _examine(model: nn.Module) -> list[Call]:
    return trace(model, _probe(model))


# --- classifier ------------------------------------------------------------------------------------------------------


def classifier_head(model: nn.Module) -> nn.Linear:
    """The linear layer that returns the logits; refuses where none does (a 1x1 convolution, the mean of two heads)."""
    return _find_head(model)[1]


def classifier_name(model: nn.Module) -> str:
    """The dotted name of `classifier_head(model)`."""
    return _find_head(model)[0]


def _find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    calls = _examine(model)
    layers = [call for call in calls if isinstance(call.module, nn.Linear | nn.Conv2d)]
    if not layers:
        found = "it has no linear layer"
    elif not isinstance(layers[-1].module, nn.Linear):
        found = f"its last layer, '{layers[-1].name}', is a {type(layers[-1].module).__name__}"
    else:
        last, head = layers[-1], layers[-1].module
        runs = sum(call.module is head for call in layers)
        if last.input is None or last.input.ndim != 2:
            found = f"its last layer, '{last.name}', does not read (N, D) features"
        elif runs > 1:
            found = f"its last layer, '{last.name}', runs {runs} times"
        elif not _same_logits(last.output, calls[-1].output):
            found = f"its last layer, '{last.name}', does not return the logits alone"
        else:
            return last.name, head
    raise ModelError(
        f"{_kind(model)} does not end in one linear classifier: {found}. Methods that read or redraw the classifier "
        f"need an nn.Linear that turns (N, D) features into logits. Choose a method that does neither, or another network, "
        f"such as preact_resnet18."
    )


def split_head(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """(features, head): (N, 3, H, W) -> (N, D) and (N, D) -> (N, K), with head(features(x)) == model(x).

    Both hold the model's own layers: training, freezing or switching the mode of a part does it to the model. Code
    between layers is taken as it runs in evaluation mode. Split after the model has moved to its device.
    """
    name, head = _find_head(model)
    features, _ = _cut(model, name, after=False)
    return features, head


def penultimate(model: nn.Module, images: Images) -> Tensor:
    """(N, D): what the classifier reads for `images`, in the model's present mode, with gradients where they are on.

    Examines the model on every call; in a loop, split it once with `split_head` instead.
    """
    name = classifier_name(model)
    with activations(model, [name], "input") as seen:
        model(images)
    return seen[name]


# --- feature maps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stage:
    """The module that returns the last (N, channels, *side) map of one resolution."""

    name: str
    module: nn.Module
    channels: int
    side: tuple[int, int]  # height, width


def stages(model: nn.Module) -> list[Stage]:
    """The last map of each resolution, in order: of residual nets each stage, of plain nets what enters each pooling.

    Stems and pooled maps do not count. Refuses networks without convolutional stages (ViT, Swin).
    """
    calls = _examine(model)
    steps = _steps(calls)
    has_blocks = any(step.block for step in steps)
    sides: dict[tuple[int, int], list[_Step]] = {}  # in the order of their last maps
    for step in steps:
        if len(step.call.shape) == 4:
            side = step.call.shape[2], step.call.shape[3]
            sides[side] = [*sides.pop(side, []), step]
    found: list[Stage] = []
    before = ""  # name of what returned the previous stage's map
    for (height, width), here in sides.items():
        with_conv = [step for step in here if step.block == has_blocks and _holds(step.call.module, nn.Conv2d)]
        if not with_conv or (not has_blocks and height * width == 1):  # a plain net's 1x1 maps belong to its classifier
            continue
        last = with_conv[-1].call if has_blocks else here[-1].call
        # A block is often the last part of a module that returns the same map: say layer4 rather than layer4.1.
        outer = [c for c in calls if c.returns(last) and _inside(last.name, c.name) and not _inside(before, c.name)]
        named = outer[-1] if outer else last
        found.append(Stage(named.name, named.module, named.shape[1], (height, width)))
        before = last.name
    if not found:
        raise ModelError(
            f"{_kind(model)} has no stage that returns a convolutional (N, C, H, W) map, which this method needs "
            f"(transformers pass tokens). Choose a convolutional network, such as preact_resnet18."
        )
    return found


def as_map(model: nn.Module, features: Tensor) -> Tensor:
    """(N, C, h, w): `features`, which a block of the model returned, as a map, whatever their layout.

    Maps pass as they are; channels-last maps are permuted (told by their equal sides); tokens (N, T, C) are laid out on
    the grid of patches after the class and register tokens, which come first, are dropped.
    """
    if features.ndim == 4:
        channels_last = features.shape[1] == features.shape[2] != features.shape[3]
        return features.permute(0, 3, 1, 2) if channels_last else features
    grids = [call.shape[2:] for call in _examine(model) if isinstance(call.module, nn.Conv2d)]
    extra = features.shape[1] - prod(grids[-1]) if features.ndim == 3 and grids else -1
    if not 0 <= extra <= 16:  # more are no class or register tokens: the grid is another
        raise ModelError(
            f"Features of shape {tuple(features.shape)} in {_kind(model)} form no map; expected (N, C, H, W), or "
            f"(N, T, C) with one token a patch. Cut the network at another module."
        )
    return features[:, extra:].transpose(1, 2).reshape(len(features), -1, *grids[-1])


@dataclass(frozen=True, eq=False)
class _Step:
    call: Call
    block: bool


def _steps(calls: list[Call]) -> list[_Step]:
    """The pass as a list of single layers and blocks, in execution order.

    A block holds weights, returns maps or tokens, and is no plain chain of its parts: it adds, concatenates or gates.
    It is repeated: an element of a list of modules, a neighbour of another of its class, or of the class of such a one.
    (So a transformer's encoder around its list of blocks is none.) Everything else is opened, and its parts are listed.
    """
    parts: dict[str, list[Call]] = {}
    for call in calls[:-1]:
        parts.setdefault(call.caller or "", []).append(call)
    twins = Counter((call.caller, type(call.module)) for call in calls)
    repeated = {
        type(call.module)
        for call in calls
        if twins[call.caller, type(call.module)] > 1 or call.name.rpartition(".")[2].isdigit()  # lists use numbers
    }

    def is_chain(call: Call) -> bool:
        inner = parts[call.name]
        enters = inner[0].input is call.input and inner[0].input_version == call.input_version
        return enters and all(b.reads(a) for a, b in pairwise(inner)) and call.returns(inner[-1])

    def is_block(call: Call) -> bool:
        fits = type(call.module) in repeated and len(call.shape) >= 3
        return fits and _holds(call.module, nn.Conv2d | nn.Linear) and not is_chain(call)

    def opened(name: str) -> Iterator[_Step]:
        for call in parts[name]:
            if call.name in parts and not is_block(call):
                yield from opened(call.name)
            else:
                yield _Step(call, block=call.name in parts)

    return list(opened(""))


# --- what pruning works on -------------------------------------------------------------------------------------------


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Every nn.BatchNorm2d that runs, by name, in execution order: subclasses and those of shortcuts too.

    Some subclasses (timm's BatchNormAct2d) activate as well: capture their input, never their output, and do not
    replace them by a plain batch norm. Refuses networks that have none.
    """
    return _find_norms(model, _examine(model))


def _find_norms(model: nn.Module, calls: list[Call]) -> dict[str, nn.BatchNorm2d]:
    found = {call.name: call.module for call in calls if isinstance(call.module, nn.BatchNorm2d)}
    if not found:
        raise ModelError(
            f"{_kind(model)} has no batch-norm layer, but this method works on the scales and statistics of batch "
            f"norms. Choose a network that has them, such as preact_resnet18 or vgg16_bn."
        )
    return found


@dataclass(frozen=True, eq=False)
class ConvNorm:
    """A convolution and a batch norm; as data flow, the norm reads its output before anything else changes it."""

    conv_name: str
    conv: nn.Conv2d
    norm_name: str
    norm: nn.BatchNorm2d


def conv_norm_pairs(model: nn.Module) -> list[ConvNorm]:
    """Each convolution that a batch norm reads directly, in execution order; a batch norm of a sum has no partner.

    Refuses networks without batch norms, or without such a pair.
    """
    calls = _examine(model)
    _find_norms(model, calls)
    pairs = _find_pairs(calls)
    if not pairs:
        raise ModelError(
            f"{_kind(model)} has no convolution that feeds a batch norm directly, but this method needs such pairs. "
            f"Choose a network that has them, such as preact_resnet18 or vgg16_bn."
        )
    return pairs


def _find_pairs(calls: list[Call]) -> list[ConvNorm]:
    pairs: dict[str, ConvNorm] = {}
    made: dict[int, tuple[Call, nn.Conv2d]] = {}  # by the identity of the tensor that the convolution returned
    for call in calls:
        if isinstance(call.module, nn.Conv2d):
            made[id(call.output)] = call, call.module
        elif isinstance(call.module, nn.BatchNorm2d) and id(call.input) in made:
            conv, layer = made[id(call.input)]
            if call.reads(conv):
                pairs[call.name] = ConvNorm(conv.name, layer, call.name, call.module)
    return list(pairs.values())


def registered_pairs(model: nn.Module) -> list[ConvNorm]:
    """Each batch norm that runs, with the convolution registered last before it, in the order of registration.

    That is data flow in a ResNet and in a VGG, but not where norms come first: in a PreAct-ResNet it pairs a block's first norm,
    which reads a sum, with the last convolution of the block before. Refuses a pair of unequal channels, and a norm before
    every convolution.
    """
    running = batch_norms(model)
    pairs: list[ConvNorm] = []
    last: tuple[str, nn.Conv2d] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            last = name, module
        elif isinstance(module, nn.BatchNorm2d) and name in running:
            if last is None or last[1].out_channels != module.num_features:
                found = f"'{last[0]}', which has {last[1].out_channels}" if last else "no convolution"
                raise ModelError(
                    f"{_kind(model)} has a batch norm '{name}' of {module.num_features} channels, but registered last before "
                    f"it is {found}; expected a convolution of as many channels. Pair them by data flow, or choose another "
                    f"network, such as preact_resnet18."
                )
            pairs.append(ConvNorm(*last, name, module))
    return pairs


@dataclass(frozen=True, eq=False)
class Prunable:
    """A convolution whose `channels` output maps can be removed; `norm`, if any, is the batch norm that reads them."""

    name: str
    conv: nn.Conv2d
    channels: int
    norm: nn.BatchNorm2d | None


def prunable_channels(model: nn.Module) -> list[Prunable]:
    """Every convolution that runs, shortcuts included, in execution order; a convolution that classifies is left out.

    Refuses networks that have no feature maps to prune: no convolution, or only one that cuts the image into patches.
    """
    calls = _examine(model)
    logits = calls[-1].output
    norms = {pair.conv_name: pair.norm for pair in _find_pairs(calls)}
    convs = {c.name: c.module for c in calls if isinstance(c.module, nn.Conv2d) and not _same(c.output, logits)}
    if all(conv.kernel_size == conv.stride and conv.stride != (1, 1) for conv in convs.values()):
        found = "its only convolution cuts the image into patches" if convs else "no convolution in it returns maps"
        raise ModelError(
            f"{_kind(model)} has no feature maps to prune: {found}. Choose a convolutional network, such as "
            f"preact_resnet18."
        )
    return [Prunable(name, conv, conv.out_channels, norms.get(name)) for name, conv in convs.items()]


# --- layers put in ---------------------------------------------------------------------------------------------------


def late_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first convolution of the last block that has any; in a plain network, which has no blocks, the last one on maps.

    Refuses networks where no convolution reads a map that others made (ViT)."""
    calls = _examine(model)
    blocks = [step.call for step in _steps(calls) if step.block]
    convs = [(call, call.module) for call in calls if isinstance(call.module, nn.Conv2d)]
    for block in reversed(blocks):
        for call, conv in convs:
            if _inside(call.name, block.name):
                return call.name, conv
    on_maps = [(call.name, conv) for call, conv in convs if prod(call.shape[2:]) > 1]  # others are a classifier's
    if blocks or len(on_maps) < 2:
        raise ModelError(
            f"{_kind(model)} has no convolution late enough to put a layer before it: it needs one that reads maps which earlier "
            f"layers made (transformers pass tokens). Choose a convolutional network, such as preact_resnet18."
        )
    return on_maps[-1]


def insert_before(model: nn.Module, name: str, layer: nn.Module) -> None:
    """`layer` in front of the module of that name, whose place a chain of both takes; it changes the names of its weights."""
    _check_name(model, name)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Sequential(layer, model.get_submodule(name)))


# --- listening -------------------------------------------------------------------------------------------------------


@contextmanager
def activations(
    model: nn.Module, names: Iterable[str], side: Literal["output", "input"] = "output"
) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward pass fills with what the named modules return, or read: the very tensors, with graph.

    Of a module that runs twice the last run stays. Unknown names are refused on entry; on leaving, so is a tensor that
    a later layer has overwritten (an in-place activation).
    """
    modules = dict(model.named_modules())
    names = list(names)
    for name in names:
        _check_name(model, name)
    seen: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def keep(name: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise ModelError(
                f"'{name}' has a {type(value).__name__} as its {side}, not a tensor; name a module inside it."
            )
        seen[name] = value
        versions[name] = 0 if value.is_inference() else value._version  # inference tensors count no versions

    def listen(name: str) -> Any:
        if side == "input":
            return modules[name].register_forward_pre_hook(lambda _, args: keep(name, args[0] if args else None))
        return modules[name].register_forward_hook(lambda _, args, result: keep(name, result))

    hooks = [listen(name) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for name, version in versions.items():
        if not seen[name].is_inference() and seen[name]._version != version:
            raise ModelError(
                f"The {side} of '{name}' was overwritten in place after it was captured, so it is not what the name "
                f"says. Capture the output of the layer that overwrites it, or the input of '{name}'."
            )


# --- two halves ------------------------------------------------------------------------------------------------------


def stem_cut(model: nn.Module, until: str | None = None) -> tuple[nn.Module, nn.Module]:
    """(stem, head) with head(stem(x)) == model(x).

    until  name of the module whose output the stem returns ("net.layer4.0"). By default the head is the last block and
           all that follows it; in a plain network, which has no blocks, the last two convolutions and what follows.

    The stem returns that module's raw output: a map, or a transformer's tokens (see `as_map`). Both hold the model's
    own layers, under the model's names: training, freezing or switching the mode of a part does it to the model. Code
    between layers is taken as it runs in evaluation mode. Cut after the model has moved to its device. Refuses where
    more than that one tensor crosses the cut, or where the halves do not give the logits.
    """
    if until is not None:
        _check_name(model, until)
        return _cut(model, until, after=True)
    calls = _examine(model)
    blocks = [step.call for step in _steps(calls) if step.block]
    convs = [call for call in calls if isinstance(call.module, nn.Conv2d) and prod(call.shape[2:]) > 1]
    if not blocks and len(convs) < 2:  # convolutions on 1x1 maps are a classifier's
        raise ModelError(
            f"{_kind(model)} has no blocks and fewer than two convolutions, so there is no usual place to cut it. Name "
            f"the module that ends the stem."
        )
    first = blocks[-1] if blocks else convs[-2]
    return _cut(model, first.name, after=False)


def parameter_share(part: nn.Module, model: nn.Module) -> float:
    """The fraction of the model's parameters that `part` holds, in [0, 1]."""
    return sum(p.numel() for p in part.parameters()) / sum(p.numel() for p in model.parameters())


class _Around(fx.Tracer):
    """Records the code of the modules around the cut; all others stay calls, so that batch norms keep their modes."""

    def __init__(self, around: set[str]) -> None:
        super().__init__()
        self.around = around

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.around


def _cut(model: nn.Module, name: str, after: bool) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The model before and after the one tensor that module `name` returns (`after`) or reads."""
    refusal = f"{_kind(model)} cannot be cut {'after' if after else 'before'} '{name}'"
    parts = name.split(".")
    try:
        with evaluating(model), torch.no_grad():
            graph = _Around({".".join(parts[:length]) for length in range(len(parts))}).trace(model)
    except Exception as error:
        raise ModelError(
            f"{refusal}: a module around it decides by its input what to do ({type(error).__name__}: {error}). Name "
            f"another module, or choose another network."
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if len(calls) != 1:
        raise ModelError(f"{refusal}: it runs {len(calls)} times in one pass, not once. Name a module that runs once.")
    crossing = calls[0] if after else calls[0].all_input_nodes[0]
    images = next(node for node in graph.nodes if node.op == "placeholder")
    logits = next(node for node in graph.nodes if node.op == "output").all_input_nodes[0]
    stem, head = _part(model, graph, images, crossing), _part(model, graph, crossing, logits)
    if stem is None or head is None:
        raise ModelError(
            f"{refusal}: more than one tensor crosses there, as inside a residual block. Name a module outside of it."
        )
    if not any(True for _ in head.parameters()):
        raise ModelError(f"{refusal}: nothing that could learn follows. Name an earlier module.")
    probe = _probe(model)
    with evaluating(model), torch.no_grad():
        features = stem(probe)
        version = features._version
        rebuilt = head(features)
        if not (_same(rebuilt, model(probe)) and features._version == version):
            raise ModelError(f"{refusal}: the two halves do not give the model's logits. Name another module.")
    return stem, head


def _part(model: nn.Module, graph: fx.Graph, start: fx.Node, end: fx.Node) -> fx.GraphModule | None:
    """What computes `end` from `start`, holding the model's own layers; None where it needs another input too."""
    needed: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += [] if node is start else node.all_input_nodes
    if start not in needed or any(node.op == "placeholder" and node is not start for node in needed):
        return None
    part = fx.Graph()
    copies = {start: part.placeholder("x")}
    for node in graph.nodes:
        if node in needed and node is not start:
            copies[node] = part.node_copy(node, lambda old: copies[old])
    part.output(copies[end])
    return fx.GraphModule(model, part, type(model).__name__)


# --- small change ----------------------------------------------------------------------------------------------------


def _kind(model: nn.Module) -> str:
    """The network's class, for messages."""
    return type(getattr(model, "net", model)).__name__


def _check_name(model: nn.Module, name: str) -> None:
    names = [known for known, _ in model.named_modules() if known]
    if name not in names:
        raise ModelError(
            f"{_kind(model)} has no module '{name}'.{did_you_mean(name, names)} The names are those of "
            f"model.named_modules()."
        )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two results hold the same numbers, whatever their shape, up to what a GPU varies from run to run."""
    if a is None or b is None or a.numel() != b.numel():
        return False
    slack = 1e-5 if a.device.type == "cpu" else 1e-3
    return bool(torch.allclose(a.flatten(), b.flatten(), rtol=slack, atol=slack, equal_nan=True))


def _same_logits(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two results are the same logits, up to a constant of each row: the logarithm of a softmax differs by one."""
    if a is None or b is None or a.ndim != 2 or a.shape != b.shape:
        return False
    return _same(a.float().log_softmax(1), b.float().log_softmax(1))


def _holds(module: nn.Module, kind: Any) -> bool:
    return any(isinstance(part, kind) for part in module.modules())


def _inside(name: str, outer: str) -> bool:
    return outer != "" and name.startswith(outer + ".")
