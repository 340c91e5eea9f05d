"""`--where dataset=digits,defense=ft,fst`: the runs whose configuration has these values, and what is to be said of the others.

A word with `=` begins a key, and words after it are further values of that key; commas inside brackets part nothing. A run is
chosen where every key has one of its values. A group's name stands for its option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from backdoorbench.config.compose import flat
from backdoorbench.config.groups import NAMES
from backdoorbench.errors import ConfigError, DataError, did_you_mean, join_words, shown

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
    values: dict[str, dict[str, None]] = {}  # of each key that is there, in the order of the runs
    for _, settings in every:
        for key, value in settings.items():
            values.setdefault(key, {})[_said(value)] = None
    for key in wanted:
        if key not in values:
            raise ConfigError(
                f"{FLAG} names {key}, a setting that none of the {len(every):,} runs has.{did_you_mean(key, values)} Correct it; "
                f"bdx config RUN prints those of a run."
            )
    kept = [
        item
        for item, settings in every
        if all(key in settings and any(_is(settings[key], text) for text in texts) for key, texts in wanted.items())
    ]
    absent = [
        f"no run has {key}={text}; there {'is' if len(values[key]) == 1 else 'are'} {_listed(list(values[key]))}"
        for key, texts in wanted.items()
        for text in texts
        if not any(key in settings and _is(settings[key], text) for _, settings in every)
    ]
    described = " ".join(f"{key}={','.join(texts)}" for key, texts in wanted.items())
    if not kept:
        reason = "; ".join(absent) or "each value is there, but no run has them together"
        raise DataError(
            f"none of the {len(every):,} runs is chosen by {FLAG} {described}: {reason}. Choose other values."
        )
    return kept, [
        f"chosen by {described}: {len(kept):,} of {len(every):,} runs; {len(every) - len(kept):,} left out",
        *absent,
    ]


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


def _listed(values: list[str]) -> str:
    more = f" and {len(values) - MOST_SAID} more" if len(values) > MOST_SAID else ""
    return f"{', '.join(values[:MOST_SAID])}{more}" if more else join_words(values)
