"""Where in a file a network's weights lie: in which of its state dicts, under which names; found by trying, and said.

By names (`by_names`) wherever they fit, else by the order in which layers run and by shapes (`by_order`).
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from backdoorbench.errors import ModelError, few
from backdoorbench.models import by_order, unmerged
from backdoorbench.models.by_names import Named, Places, Shapes, is_optional, normalisation
from backdoorbench.models.by_order import counts, shapes_in
from backdoorbench.models.reading import Found, State

log = logging.getLogger(__name__)

POSITIONS = ("pos_embed", "position_embedding", "relative_position", "attention_bias")  # in the names of such weights


@dataclass(frozen=True)
class Fit:
    """Where the weights of a network lie in a file.

    places   the network's names -> the file's; of those it has
    by       whether they were found by names or by order
    head     what the file's names have before the network's, where they were found by names
    copies   where the network lies once more in the same state, by the head of the names there
    colours  the file's names of the mean and the deviation that its images are normalised by, where it has them"""

    found: Found
    state: State
    places: Places
    by: Literal["names", "order"]
    head: str = ""
    copies: Mapping[str, Places] = field(default_factory=dict)
    colours: tuple[str, str] | None = None

    def table(self) -> str:
        """Every pair, a line each, as `net.layer1.0.conv1.weight <- block1.layer.0.conv1.weight`."""
        width = max(map(len, self.places))
        return "\n".join(f"{own:<{width}} <- {there}" for own, there in self.places.items())


def fit(model: nn.Module, found: Found, described: str) -> Fit:
    """Finds the network's weights in a file; says which state dict it took, what it left, and how it matched them.

    model      a Classifier
    described  the network in a few words, for messages

    Raises ModelError where no state of the file fits it, or where one could fit in several ways."""
    fits = find(model, found, described)
    if not fits:
        raise misfit(shapes_in(model.state_dict()), found, described)
    tell(fits, described)
    return fits[0]


def find(model: nn.Module, found: Found, described: str) -> list[Fit]:
    """Every state of the file that fits, likeliest first; by order only where none does by names, and then one."""
    own = shapes_in(model.state_dict())
    fits = []
    for state in found.states:
        named = Named(own, state.weights)
        if named.fits:
            fits.append(Fit(found, state, named.places, "names", named.shown_head, named.copies, named.colours))
    if not fits and found.is_ordered:
        alike = [state for state in found.states if counts(own) == counts(shapes_in(state.weights))]
        for state in alike[:1]:
            places = by_order.match(model, state.weights, found.named, described)
            aside = {name: value for name, value in state.weights.items() if name not in places.values()}
            colours = normalisation(aside, math.prod(own["normalize.mean"]))
            fits.append(Fit(found, state, places, "order", colours=colours))
    return fits


def misfit(own: Shapes, found: Found, described: str) -> ModelError:
    """Why no state of a file fits a network: what the nearest by name lacks, or that it has none."""
    if (made_of := unmerged.told(found, own)) is not None:
        return ModelError(f"{found.named} {made_of}")
    if not found.states and found.optimizers:
        return ModelError(
            f"{found.named} holds the state of an optimizer ({few(found.optimizers)}) and no weights of a network; expected a "
            f"state dict (a dict of tensors). Save the network itself with torch.save(model.state_dict(), FILE)."
        )
    if not found.states:
        inside = f"; it has {', '.join(map(repr, found.tree))}" if isinstance(found.tree, dict) and found.tree else ""
        return ModelError(
            f"{found.named} holds no state dict (a dict of tensors){inside[:200]}. Save the network again with "
            f"torch.save(model.state_dict(), FILE)."
        )
    named = max((Named(own, state.weights) for state in found.states), key=lambda named: len(named.places))
    if named.twice:
        first, second = named.twice
        return ModelError(
            f"{found.named} holds both {first} and {second}, which are the same weight; expected each once. "
            f"Save the network again with safetensors.torch.save_file(model.state_dict(), FILE)."
        )
    if (counts_of := _class_counts(named)) is not None:
        there, here = counts_of
        return ModelError(
            f"{found.named} is of a network for {there} classes, and {described} is asked for: {next(named.differences())}. Give "
            f"images of the {there} classes that it knows, or a file for {here}."
        )
    differences = list(named.differences())
    more = f" ({len(differences) - 1} more differences)" if len(differences) > 1 else ""
    sorting = ""
    if not found.is_ordered and counts(own) == counts(shapes_in(named.weights)):
        sorting = (
            " Its shapes are those of this network under other names, but a safetensors file does not keep the order that would "
            "tell which is which: save it with torch.save(model.state_dict(), FILE)."
        )
    if _differs_in_positions(named):
        return ModelError(
            f"{found.named} is of {described.partition(' at ')[0]} for images of another size: {differences[0]}, and a network "
            f"has as many positions as its images have patches. Say at which size it was trained: dataset.size=N."
        )
    if named.is_stranger and not sorting:
        wanted = few(name.removeprefix("net.") for name in own if name.startswith("net."))
        return ModelError(
            f"{found.named} holds the weights of another network than {described}: its names are {few(named.weights)}, those "
            f"of that {wanted}, and {len(named.places)} are the same. Name the network that it is of, as docs/your-model.md says."
        )
    return ModelError(
        f"{found.named} does not fit {described}: {differences[0]}{more}. Choose the model, width, dataset.size and data set it "
        f"was trained with.{sorting}"
    )


def _differs_in_positions(named: Named) -> bool:
    """Whether a file differs from a network in the shapes of what it adds to or weighs positions by, and in nothing else."""
    is_whole = not named.left and all(name in named.places or is_optional(name) for name in named.own)
    other = named.places.keys() - set(named.fitting)
    return is_whole and bool(other) and all(any(word in name for word in POSITIONS) for name in other)


def _class_counts(named: Named) -> tuple[int, int] | None:
    """The numbers of classes there and here, where a network differs in the rows of its classifier alone."""
    if named.left or any(name not in named.places and not is_optional(name) for name in named.own):
        return None
    other = named.places.keys() - set(named.fitting)
    layers = {name.rpartition(".")[0] for name in other}
    is_whole = all(name in other for name in named.places if name.rpartition(".")[0] in layers)
    pairs = [(tuple(named.weights[named.places[name]].shape), named.own[name]) for name in other]
    rows = {(there[:1], here[:1]) for there, here in pairs if there[1:] == here[1:]}
    is_rows = is_whole and len(rows) == 1 and all(there[1:] == here[1:] != there for there, here in pairs)
    if not is_rows:
        return None
    ((there,), (here,)) = rows.pop()
    return there, here


def _differs(chosen: Fit, copy: Places) -> bool:
    """Whether a copy of the network in a state has other weights than those that are read."""
    weights = chosen.state.weights
    pairs = ((weights[there], weights[chosen.places[name]]) for name, there in copy.items())
    return any(not torch.equal(other, read) for other, read in pairs)


def tell(fits: list[Fit], described: str) -> None:
    """Says which state dict of a file is read, the first that fits, what is left of it, and how its weights were matched."""
    chosen, *others = fits
    found, state, file = chosen.found, chosen.state, chosen.found.file.name
    name = state.name or "the file itself"
    averaged = next((other.state.name for other in others if other.state.is_averaged), "")
    if averaged and not state.is_averaged:
        load = "torch.load(FILE, weights_only=False)" if found.foreign else "torch.load(FILE)"
        trusting = " (which runs code that the file names)" if found.foreign else ""
        log.warning(
            f"{file} holds two sets of weights, of which one is an average, by their names that under {averaged} (timm's loaders "
            f"take the average, and mmengine exchanges the two): those under {name} are read. Save the others alone to have "
            f"them: safetensors.torch.save_file({load}['{averaged}'], NEW){trusting}"
        )
    elif others:
        log.warning(
            f"{file} holds {few([name, *(other.state.name for other in others)])}, which all fit; {name} is read."
        )
    elif state.keys:
        log.info(f"{file}: the weights are those under '{name}'.")
    if chosen.head not in ("", "net."):
        log.info(f"{file}: '{chosen.head}' was taken off the names of the weights.")
    if elsewhere := [head for head, copy in chosen.copies.items() if _differs(chosen, copy)]:
        heads = few(f"'{head}'" for head in elsewhere)
        own = f"under '{chosen.head}'" if chosen.head else "without a head"
        log.warning(
            f"{file} holds the network under {heads}, too, with other weights than those that are read, {own}. To have these "
            f"judged, save them alone."
        )
    copied = [name for copy in chosen.copies.values() for name in copy.values()]
    known = {*chosen.places.values(), *(chosen.colours or ()), *copied}
    if left := [there for there in state.weights if there not in known]:
        log.info(f"{file}: {len(left)} tensors beside the network's are left out ({few(left)}).")
    if found.foreign:
        log.info(f"{file}: {few(found.foreign)} in it are left unread; nothing of the file was run.")
    if chosen.by == "order":
        pairs = [f"{there} -> {own.removeprefix('net.')}" for own, there in chosen.places.items()]
        log.warning(
            f"{file} has other names than {described}: {len(pairs)} weights were matched by execution order and shapes, such as "
            f"{few(pairs)}."
        )
        log.debug(chosen.table())
