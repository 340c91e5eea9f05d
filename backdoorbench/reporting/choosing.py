"""`--where dataset=digits,defense=ft,fst`: the runs whose configuration has these values, and what is to be said of the others.

A word with `=` begins a key, and words after it are further values of that key; commas inside brackets part nothing. A run is
chosen where every key has one of its values. A group's name stands for its option. With an option behind the group a key is about
that option's runs alone: `defense.fst.alpha=0.2` leaves out FST at other values, and no run of another defense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from backdoorbench.config.compose import flat
from backdoorbench.config.groups import NAMES
from backdoorbench.errors import ConfigError, DataError, did_you_mean, join_words, quantity, shown

T = TypeVar("T")
Conditions = Mapping[str, Sequence[str]]  # dotted key, or group -> the values that are wanted, as they were typed
FLAG = "--where"
MOST_SAID = 8  # values that a message lists


def parsed(texts: Sequence[str]) -> dict[str, list[str]]:
    """What all `--where` say together. ConfigError for words that say nothing, or a key that is given twice."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key = ""
        for word in re.split(r",(?![^\[(]*[\])])", text):
            name, mark, value = word.partition("=")
            if mark:
                key = name.strip()
                if key in found:
                    raise ConfigError(
                        f"{FLAG} names {key} twice; expected it once, its values after it: {key}={','.join(found[key])},{value}. "
                        f"Join them."
                    )
                found[key] = []
            value = (value if mark else word).strip()
            if not key or not value:
                raise ConfigError(
                    f"{FLAG} is {shown(text)}; expected KEY=VALUE,VALUE,KEY=VALUE, such as dataset=digits,defense=ft,fst. "
                    f"Correct it."
                )
            found[key].append(value)
    return found


def choose(items: Iterable[tuple[T, Mapping[str, Any]]], wanted: Conditions) -> tuple[list[T], list[str]]:
    """The items whose configurations meet all conditions, and lines that say what was left out, and values that none has.

    ConfigError for a key that no configuration has, DataError where nothing is left."""
    every = [(item, _keyed(config)) for item, config in items]
    if not wanted:
        return [item for item, _ in every], []
    own = _own([settings for _, settings in every], wanted)
    every = [(item, settings | _named_by_option(settings, own)) for item, settings in every]
    values: dict[str, dict[str, None]] = {}  # of each key that is there, in the order of the runs
    for _, settings in every:
        for key, value in settings.items():
            values.setdefault(key, {})[_said(value)] = None
    for key in wanted:
        if key not in values:
            known = [*(own[key].spell(other) for other in values if key in own and own[key].is_near(other)), *values]
            raise ConfigError(
                f"{FLAG} names {key}, a setting that none of the {len(every):,} runs has.{did_you_mean(key, known)} Correct it; "
                f"bdx config RUN prints those of a run."
            )
    met = {key: [_meets(settings, key, texts, own) for _, settings in every] for key, texts in wanted.items()}
    kept = [item for (item, _), *answers in zip(every, *met.values(), strict=True) if all(answers)]
    bound = [
        f"{key} left out {len(asked) - sum(asked):,} of {quantity(len(asked), 'run')} of {own[key].option}"
        for key in own
        if (
            asked := [is_met for is_met, (_, settings) in zip(met[key], every, strict=True) if own[key].is_of(settings)]
        )
    ]
    lacking = {key: sum(key not in settings for _, settings in every) for key in wanted if key not in own}
    without = [
        f"{count:,} of {quantity(len(every), 'run')} have no {key} (of other options, or recorded by an older bdx) and are "
        "left out"
        for key, count in lacking.items()
        if count
    ]
    absent = [
        f"no run has {key}={text}; {_there(list(values[key]))}"
        for key, texts in wanted.items()
        for text in texts
        if not any(key in settings and _is(settings[key], text) for _, settings in every)
    ]
    described = " ".join(f"{key}={','.join(texts)}" for key, texts in wanted.items())
    if not kept:
        reason = "; ".join(absent) or f"each value is there, but no run has them together{_narrower(every, wanted)}"
        raise DataError(
            f"none of the {len(every):,} runs is chosen by {FLAG} {described}: {reason}. Choose other values."
        )
    return kept, [
        f"chosen by {described}: {len(kept):,} of {quantity(len(every), 'run')}; {len(every) - len(kept):,} left out",
        *bound,
        *without,
        *absent,
    ]


@dataclass(frozen=True)
class _Own:
    """What `defense.fst.alpha` is about: a group, its option, and the setting as every run calls it."""

    group: str
    option: str
    setting: str

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        return bool(settings.get(self.group) == self.option)

    def is_near(self, key: str) -> bool:
        """Whether a key is a setting of this group."""
        return key.startswith(f"{self.group}.") and not key.startswith(f"{self.group}.{self.option}.")

    def spell(self, key: str) -> str:
        """A setting of the group with the option in it."""
        return f"{self.group}.{self.option}.{key.removeprefix(f'{self.group}.')}"


def _own(every: Sequence[Mapping[str, Any]], wanted: Conditions) -> dict[str, _Own]:
    """The wanted keys that have an option behind their group, one that some run chose."""
    found = {}
    for key in wanted:
        group, *inner = key.split(".")
        if len(inner) > 1 and group in NAMES and any(settings.get(group) == inner[0] for settings in every):
            found[key] = _Own(group, inner[0], ".".join([group, *inner[1:]]))
    return found


def _named_by_option(settings: Mapping[str, Any], own: Mapping[str, _Own]) -> dict[str, Any]:
    """A run's settings under these keys, those of its options."""
    return {key: settings[of.setting] for key, of in own.items() if of.is_of(settings) and of.setting in settings}


def _meets(settings: Mapping[str, Any], key: str, texts: Sequence[str], own: Mapping[str, _Own]) -> bool:
    """Whether a run has one of a key's values, or the key is about another option than the run's."""
    if key in own and not own[key].is_of(settings):
        return True
    return key in settings and any(_is(settings[key], text) for text in texts)


def _narrower(every: Sequence[tuple[Any, Mapping[str, Any]]], wanted: Conditions) -> str:
    """How to bind one option alone, where options and a setting of theirs are wanted together."""
    for key, texts in wanted.items():
        group, mark, inner = key.partition(".")
        if mark and inner != "name" and group in wanted:
            has = (settings[group] for _, settings in every if key in settings and _is(settings[key], texts[0]))
            if option := next(has, None):
                return f" ({group}.{option}.{inner}={','.join(texts)} would bind the runs of {option} alone)"
    return ""


def _keyed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's settings by dotted key, the option of each group by its name too."""
    options = {
        group: config[group]["name"]
        for group in NAMES
        if isinstance(config.get(group), Mapping) and "name" in config[group]
    }
    return {**flat(config), **options}


def _is(value: Any, text: str) -> bool:
    """Whether a setting has the value that was typed: numbers by value, `null`, `true` and lists as yaml has them."""
    if isinstance(value, bool) or value is None:
        return text.lower() == _said(value)
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text.replace(" ", "") == _said(value).replace(" ", "") or text == str(value)


def _said(value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{','.join(map(_said, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str)


def _there(values: list[str]) -> str:
    """`there are ft and fst`; of a single one, which may be called none: `all have none`."""
    return f"all that have one have {values[0]}" if len(values) == 1 else f"there are {_listed(values)}"


def _listed(values: list[str]) -> str:
    more = f" and {len(values) - MOST_SAID} more" if len(values) > MOST_SAID else ""
    return f"{', '.join(values[:MOST_SAID])}{more}" if more else join_words(values)
