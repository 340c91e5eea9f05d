"""What settings name tells runs apart, too: two roots of one data set, a file that was replaced, a plugin whose code was edited.

A record holds a digest of each. They become settings of their own where runs of equal settings differ in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from backdoorbench.config.groups import content_of
from backdoorbench.reporting.rows import DASH, TOLD_OF_ALL, identifier

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

SHOWN = 8  # digits of a digest


def tell_apart_by_content(found: Mapping[Path, Run]) -> dict[Path, Run]:
    """The same runs, those of equal settings and different content with `content of GROUP` among their settings.

    A record from before content was kept has a dash there; where all others agree, it counts as one of them."""
    alike: dict[str, list[Path]] = {}
    identify = identifier(TOLD_OF_ALL)
    for folder, run in found.items():
        alike.setdefault(identify(run.config), []).append(folder)
    told = dict(found)
    for folders in alike.values():
        known: dict[str, set[str]] = {}
        for folder in folders:
            for key, digest in found[folder].content.items():
                known.setdefault(key, set()).add(digest)
        for key in (key for key, digests in known.items() if len(digests) > 1):
            for folder in folders:
                told[folder] = _with(told[folder], key, found[folder].content.get(key, DASH)[:SHOWN])
    return told


def _with(run: Run, key: str, digest: str) -> Run:
    group, _, inner = key.partition(".")
    place = content_of(group)
    return dataclasses.replace(run, config={**run.config, place: {**run.config.get(place, {}), inner: digest}})
