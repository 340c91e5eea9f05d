"""What settings name tells runs apart, too: two roots of one data set, a file that was replaced, a plugin whose code was edited.

A record holds a digest of each. They become settings of their own where runs of equal settings differ in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backdoorbench.config.groups import SOURCE, content_of
from backdoorbench.reporting.rows import DASH, TOLD_OF_ALL, identifier

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

SHOWN = 8  # digits of a digest


def tell_apart_by_content(found: Mapping[Path, Run]) -> dict[Path, Run]:
    """The same runs, with `content of GROUP` among the settings of an option whose finished runs of equal settings differ in it,
    or whose code was edited between any two of them: what else differs would be taken for the cause.

    All runs of that option that know their content then say it. A record from before content was kept has a dash there where its
    like differ; where they agree, it counts as one of them. A run that did not finish is in no row, so it splits none."""
    alike: dict[str, list[Path]] = {}
    identify = identifier(TOLD_OF_ALL)
    for folder, run in found.items():
        if run.status == "done":
            alike.setdefault(identify(run.config), []).append(folder)
    agreed: dict[Path, dict[str, str]] = {}  # what a run's like say, where they say one thing
    split: set[tuple[str, str]] = set()  # a content's key and the option that it splits
    for folders in alike.values():
        known: dict[str, set[str]] = {}
        for folder in folders:
            for key, digest in found[folder].content.items():
                known.setdefault(key, set()).add(digest)
        same = {key: next(iter(digests)) for key, digests in known.items() if len(digests) == 1}
        agreed |= dict.fromkeys(folders, same)
        split |= {(key, _option(found[folders[0]], key)) for key in known.keys() - same.keys()}
    split |= _edited([run for run in found.values() if run.status == "done"])
    told = dict(found)
    for folder, run in found.items():
        for key, option in sorted(split):
            if option == _option(run, key):
                digest = run.content.get(key) or agreed.get(folder, {}).get(key, DASH)
                told[folder] = _with(told[folder], key, digest[:SHOWN])
    return told


def _edited(runs: Sequence[Run]) -> set[tuple[str, str]]:
    """Contents that are source code, and the options of which it differs between runs."""
    known: dict[tuple[str, str, str], set[str]] = {}
    for run in runs:
        for key, said in run.content.items():
            function, is_function, _ = said.rpartition(" of ")  # which a setting names: it may be another one
            if is_function or key.endswith(f".{SOURCE}"):
                known.setdefault((key, _option(run, key), function), set()).add(said)
    return {(key, option) for (key, option, _), digests in known.items() if len(digests) > 1}


def _option(run: Run, key: str) -> str:
    """The option of the group that a content's key is about."""
    return str(run.config.get(key.partition(".")[0], {}).get("name", ""))


def _with(run: Run, key: str, digest: str) -> Run:
    group, _, inner = key.partition(".")
    place = content_of(group)
    return dataclasses.replace(run, config={**run.config, place: {**run.config.get(place, {}), inner: digest}})
