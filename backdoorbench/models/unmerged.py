"""Files that do not hold a network's weights, but what these are made of; told by names and kinds of tensors.

Pruning keeps a weight apart from its mask, weight and spectral norm a direction apart from a scale, an adapter what is added to a
layer, a sharded file one part of each; where batch norms were folded into convolutions, two layers are one. To read some of it
would be to read another network, so such a file fits none, and what stands here says what its owner does.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from backdoorbench.errors import few
from backdoorbench.models.reading import Found, Weights


@dataclass(frozen=True)
class Apart:
    """what: a file holds instead of weights; remedy: what makes weights of it"""

    what: str
    remedy: str


PAIRS: dict[tuple[str, str], Apart] = {  # endings of two names that stand for one weight
    ("_orig", "_mask"): Apart(
        "pruned weights apart from their masks",
        "torch.nn.utils.prune.remove(module, 'weight') for each pruned module",
    ),
    ("_orig", "_u"): Apart(
        "weights before their spectral normalisation",
        "torch.nn.utils.remove_spectral_norm(module) for each such module",
    ),
    ("_g", "_v"): Apart(
        "lengths of weights apart from their directions",
        "torch.nn.utils.remove_weight_norm(module) for each such module",
    ),
}
WEIGHTS = ("weight", "bias")  # what those are of
PARAMETRISED = re.compile(r"(^|\.)parametrizations\.")
ADAPTERS = (
    "lora|vblora|randlora|ia3|hada|lokr|oft|boft|hra|vera|shira|c3a|fourierft"  # as peft begins their tensors' names
)
OF_ADAPTERS = re.compile(rf"(^|[._])({ADAPTERS})_|\.modules_to_save\.")
OF_QUANTISED = re.compile(r"(^|[._])(packed_params|zero_point|qweight|qzeros)$")
OF_OBSERVERS = re.compile(r"(^|[._])(weight_fake_quant|activation_post_process(_\d+)?)\.")
OF_FOLDED = re.compile(r"(^|\.)\w*reparam\w*\.")
MEAN = ".running_mean"  # of a batch norm
FEWEST = 4  # convolutions with biases and without norms that look folded
SHARDED = ("DTensor", "ShardedTensor")
HERE = "Where the network runs, call {}, then torch.save(model.state_dict(), FILE)."


def told(found: Found, own: Collection[str] = ()) -> str | None:
    """What a file holds in place of weights, and what to do, in a sentence or two after the file's name; None where nothing of it
    says that it does.

    own  the names of the network's weights that it was to have"""
    rounds, folds = (any(map(pattern.search, own)) for pattern in (OF_OBSERVERS, OF_FOLDED))
    first = [state.weights for state in found.states[:1]]
    normalises = not own or (any(name.endswith(MEAN) for name in own) and not folds)
    said = [
        _of_kinds(found),
        *map(_of_names, first),
        *(map(_of_observers, first) if not rounds else []),
        *(map(_of_folded, first) if normalises else []),
    ]
    return next(filter(None, said), None)


def _of_kinds(found: Found) -> str | None:
    """Of tensors that are no plain ones."""
    if not found.unread:
        return None
    name, kind = next(iter(found.unread.items()))
    if kind.rpartition(".")[2] in SHARDED:
        return (
            f"holds weights that are spread over several processes ({name} is a {kind}), of which each file has a part; expected "
            "whole ones. Where the network runs, have torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) join them, and torch.save what it returns."
        )
    return (
        f"holds {len(found.unread)} weights as objects of another library ({name} is a {kind}), which bdx does not build: "
        "quantised ones, most often. Choose the file from before they were made so, or save them as plain tensors."
    )


def _of_names(weights: Weights) -> str | None:
    """Of the names and sizes of plain tensors."""
    for endings, apart in PAIRS.items():
        if pairs := _pairs(weights, *endings):
            return _asked(apart, pairs[0])
    if parts := _matching(PARAMETRISED, weights):
        return _asked(
            Apart(
                "what torch.nn.utils.parametrize computes weights of",
                "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') for each such module",
            ),
            parts[:2],
        )
    if parts := _matching(OF_ADAPTERS, weights):
        return (
            f"holds an adapter ({few(parts, 2)}), whose weights are added to those of the network that it was trained on; "
            "expected the network with both in one. Merge them where it runs, with peft by model.merge_and_unload(), then "
            "torch.save(model.state_dict(), FILE)."
        )
    if parts := [name for name in _matching(OF_QUANTISED, weights) if not _is_fraction(name, weights)]:
        return (
            f"holds a quantised network ({few(parts, 2)}); expected weights that are fractions. Choose the file from before it "
            "was quantised."
        )
    if parts := [name for name, value in weights.items() if value.shape == (0,) and name.endswith(".weight")]:
        return (
            f"holds {len(parts)} weights without a number in them ({few(parts, 2)}), as DeepSpeed's ZeRO-3 leaves them in "
            "the file of each process; expected whole ones. Join them with the zero_to_fp32.py that it wrote into that folder, "
            "and name the file that this makes."
        )
    return None


def _of_observers(weights: Weights) -> str | None:
    """Of a network that rounds as it computes."""
    if parts := _matching(OF_OBSERVERS, weights):
        return (
            f"holds a network trained as if it were quantised ({few(parts, 2)}), which rounds as it computes; expected "
            "its weights alone, of a network that does not round. Leave out the rest: torch.save({name: value for name, value in "
            "torch.load(FILE).items() if 'fake_quant' not in name and 'activation_post_process' not in name}, NEW)."
        )
    return None


def _of_folded(weights: Weights) -> str | None:
    """Of a network whose convolutions hold its batch norms, too: by names, or since each has a bias and nothing normalises."""
    filters = [name for name, value in weights.items() if value.ndim == 4 and name.endswith(".weight")]
    biases = [bias for name in filters if (bias := f"{name.removesuffix('weight')}bias") in weights]
    norms = [name for name, value in weights.items() if name.endswith((MEAN, ".weight")) and value.ndim == 1]
    if parts := _matching(OF_FOLDED, weights):
        said = few(parts, 2)
    elif len(biases) == len(filters) >= FEWEST and not norms:
        said = f"all {len(filters)} have biases, such as {biases[0]}, and nothing normalises"
    else:
        return None
    return (
        f"holds a network whose batch norms were folded into its convolutions for use ({said}), as torch.fx's fuse and timm's "
        "reparameterize_model do; expected one with its batch norms. Choose the file from before that, or name a function of "
        "yours that returns the folded network: model=module model.target=PACKAGE.MODULE:FACTORY, as docs/your-model.md says."
    )


def _asked(apart: Apart, names: Iterable[str]) -> str:
    listed = few(names)
    return f"holds {apart.what} ({listed}); expected the weights that the network computes with. {HERE.format(apart.remedy)}"


def _pairs(weights: Weights, first: str, second: str) -> list[tuple[str, str]]:
    """Names with these endings that stand for one weight, which has none of its own."""
    stems = [name.removesuffix(first) for name in weights if name.endswith(first)]
    return [
        (stem + first, stem + second)
        for stem in stems
        if stem not in weights and stem + second in weights and stem.rpartition(".")[2] in WEIGHTS
    ]


def _is_fraction(name: str, weights: Weights) -> bool:
    """Whether the layer that is quantised by a tensor of this name has its own weights as fractions: it trains as if it were
    quantised."""
    layer = name.rpartition(".")[0]
    weight = weights.get(f"{layer}.weight")
    return f"{layer}.fake_quant_enabled" in weights or weight is not None and weight.is_floating_point()


def _matching(pattern: re.Pattern[str], weights: Weights) -> list[str]:
    return [name for name in weights if pattern.search(name)]
