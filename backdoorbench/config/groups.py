"""The one table of what a run is described by: groups of options, settings beside them, and the stages that methods carry out.

Whoever needs a list of groups asks here, so that a new group is a line of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    name    as records call it
    group   whose option carries it out
    model   what tables call the model that it leaves; empty where it leaves none
    upon    groups whose options made what it works on
    """

    name: str
    group: str
    model: str
    upon: tuple[str, ...]


INFECT = Stage("infect", "attack", "infected", ())
DETECT = Stage("detect", "detector", "", ("attack",))
PURIFY = Stage("purify", "defense", "purified", ("attack",))
AFTER = Stage("after", "after", "", ("attack", "defense"))
STAGES = (INFECT, DETECT, PURIFY, AFTER)  # in the order of a run
JUDGED = tuple(stage for stage in STAGES if stage.model)  # those whose models have CA, ASR and RA


@dataclass(frozen=True)
class Group:
    """A folder of options below `conf/`, of which a run has one each.

    built      whether an option describes an object: `_target_` and its fields
    infection  whether its settings are part of an infection's key
    run        whether they are part of a run's key
    tells      whether they tell rows of a table apart
    silent     the option that leaves no trace in a key, so that keys from before the group stand; empty where none does
    absorbs    groups whose settings its name tells too, where it is an axis of a table
    """

    name: str
    built: bool = True
    infection: bool = False
    run: bool = True
    tells: bool = True
    silent: str = ""
    absorbs: tuple[str, ...] = ()


GROUPS = (
    Group("attack", infection=True),
    Group("defense"),
    Group("detector", silent="none"),
    Group("after", silent="none"),
    Group("dataset", infection=True, absorbs=("model", "train", "holdout")),
    Group("model", infection=True, absorbs=("train",)),
    Group("train", infection=True),
    Group("holdout"),  # part of an infection's key where it changes what the victim trains on
    Group("experiment", built=False, run=False, tells=False),
    Group("scale", built=False, run=False, tells=False),
    Group("runtime", built=False, run=False, tells=False),
    Group("tracker", run=False, tells=False),
)


@dataclass(frozen=True)
class Setting:
    """A setting beside the groups. `run` and `tells` as those of a group; part_of: the group without which it does nothing."""

    name: str
    run: bool = False
    tells: bool = False
    part_of: str = ""


SETTINGS = (
    Setting("seed", run=True),
    Setting("control", run=True),
    Setting("curve", run=True),
    Setting("gates", run=True, tells=True),
    Setting("inspection", run=True, part_of="detector"),
    Setting("exact", run=True, part_of="after"),
    Setting("force"),
    Setting("reconstruct"),  # only allows a run that there would not be
    Setting("rerun"),
    Setting("fail_fast"),
    Setting("plugins"),
)

# Of a data set: where it lies and how its files are read, which its digest makes up for; and what acts through other groups'
# settings alone. USUAL: those of them that tell rows apart, unless they are this, as in records from before there were any.
UNKEYED = ("root", "download", "order", "background", "layout", "class_names", "test_share", "target", "tuning")
USUAL = {"order": "numeric", "background": "white", "layout": "auto", "class_names": None, "test_share": 0.2}
LATER: dict[str, dict[str, Any]] = {  # group -> settings that keys and records once did not have, as they were
    "after": {"norm": "linf", "start": "none", "turns": 1, "runner_up": 0.0},
    "attack": {"abi": None},
    "dataset": {"roi": "whole"},
    "detector": {"images": None},
    "holdout": {"per_class": None, "validate": 0},
    "model": {"mean": None, "std": None, "range": 1, "channels": 3, "colours": "rgb"},
}
READING = (
    "mean",
    "std",
    "range",
    "channels",
    "colours",
)  # of a model: how it is shown images, which builds no other network
HOLDOUTS = {  # what keys and old records call `source` of a holdout -> what settings call it
    "withheld": {"kind": "reserved", "split": "train"},
    "test": {"kind": "reserved", "split": "test"},
    "train_overlap": {"kind": "seen", "split": "train"},
    "folder": {"kind": "foreign", "split": "train"},
}


RENAMED = {  # a setting's former name -> what stands for it now
    "holdout.source": "holdout.kind: withheld is holdout.kind=reserved, train_overlap is holdout.kind=seen, test is "
    "holdout.kind=reserved holdout.split=test, and folder is holdout.kind=foreign"
}


def without_later(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """An option's settings but for those that came later and say what was so before: they are no part of keys, and tell no rows
    apart."""
    usual = LATER.get(group, {})
    return {key: value for key, value in node.items() if key not in usual or value != usual[key]}


def as_keyed(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """An option's settings as keys have them: without those that came later, and renamed ones under their first names, so that
    keys stand."""
    kept = without_later(group, node)
    if group == "holdout" and "kind" in kept:
        kind, split = kept.pop("kind"), kept.pop("split", "train")
        named = (
            source
            for source, said in HOLDOUTS.items()
            if said["kind"] == kind and (kind != "reserved" or said["split"] == split)
        )
        kept["source"] = next(named, kind)
    return kept


def as_called_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of old, or one in the words of keys, in today's."""
    node = config.get("holdout")
    if not isinstance(node, Mapping) or node.get("source") not in HOLDOUTS:
        return {**config}
    rest = {key: value for key, value in node.items() if key != "source"}
    return {**config, "holdout": {**rest, **HOLDOUTS[node["source"]]}}


SOURCE = "source code"  # of an option in a key: the code of its class, where that is a plugin's


def content_of(group: str) -> str:
    """What holds the digests of what an option's settings name, beside the group, in settings that tables compare."""
    return f"content of {group}"


NAMES = tuple(group.name for group in GROUPS)
BUILT = tuple(group.name for group in GROUPS if group.built)
TELLING = tuple(group.name for group in GROUPS if group.tells)
OPTIONAL = tuple(group.name for group in GROUPS if group.silent)
ABSORBED = {group.name: (group.name, content_of(group.name), *group.absorbs) for group in GROUPS}
SETTING_NAMES = tuple(setting.name for setting in SETTINGS)


def told_by(stage: Stage) -> tuple[str, ...]:
    """Groups and settings that tell apart the rows of a table of this stage: all that bear on its figures."""
    methods = {each.group for each in STAGES}
    groups = [
        group.name
        for group in GROUPS
        if group.tells and (group.name not in methods or group.name in (INFECT.group, *stage.upon, stage.group))
    ]
    own = [setting.name for setting in SETTINGS if setting.tells or setting.part_of == stage.group]
    return (*groups, *map(content_of, groups), *own)
