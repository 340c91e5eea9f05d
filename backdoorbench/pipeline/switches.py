"""What a configuration holds beside the options of its groups: which keys there are, their types and their ranges."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from backdoorbench.after.exact import Exact
from backdoorbench.config import acts, groups, plugins
from backdoorbench.config.acts import Acts, Condition, Idle, Unless
from backdoorbench.config.build import Place, construct, convert
from backdoorbench.config.compose import Plain
from backdoorbench.errors import ConfigError, check_range, did_you_mean, join_words
from backdoorbench.pipeline.gates import Gates

Control = Literal["cached", "train", "off"]
CONTROLS: tuple[str, ...] = get_args(Control)
MOST_THREADS = 1024  # beyond some thousands a process ends without a word


@dataclass(frozen=True)
class Curve:
    """Where the learning curve of a defense is measured; conf/config.yaml says what each is."""

    acts: ClassVar[Acts] = {"images": Unless("every", 0)}

    every: int
    images: int

    def __post_init__(self) -> None:
        check_range("curve.every", self.every, 0)
        check_range("curve.images", self.images, 1)


@dataclass(frozen=True)
class Inspection:
    """What a detector of inputs is shown."""

    images: int

    def __post_init__(self) -> None:
        check_range("inspection.images", self.images, 1)


@dataclass(frozen=True)
class Runtime:
    """What cannot change a result; conf/runtime/auto.yaml says what each is."""

    device: str
    threads: int | None
    outputs: Place
    data_root: Place
    snapshot_seconds: float
    progress: Literal["auto", "lines", "off"]

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_range("runtime.threads", self.threads, 1, MOST_THREADS)
        check_range("runtime.snapshot_seconds", self.snapshot_seconds, 0)


@dataclass(frozen=True)
class Switches:
    """The settings beside the groups, and the groups that are no method's."""

    seed: int
    control: Control
    curve: Curve
    gates: Gates
    inspection: Inspection
    exact: Exact
    runtime: Runtime
    force: bool
    reconstruct: bool
    rerun: bool
    fail_fast: bool
    plugins: tuple[str, ...]


class JudgesInputs(Condition):
    """A setting acts beside a detector of images that arrive."""

    sibling = "name"

    def told(self, where: str) -> str:
        return "only with a detector that judges inputs"


class AfterPurification(Condition):
    """A setting acts beside an after-attack."""

    sibling = "name"

    def told(self, where: str) -> str:
        return "only with an after-attack"


def idle(resolved: Plain, judges: str, is_attacked_after: bool) -> dict[str, list[Idle]]:
    """Group of settings -> those of its settings that act on nothing in this configuration.

    judges  what its detector judges"""
    found: dict[str, list[Idle]] = {"curve": list(acts.idle(Curve, resolved["curve"], "curve")), "inspection": []}
    found["exact"] = list(acts.idle(Exact, resolved["exact"], "exact"))
    if not is_attacked_after:
        after, exact = resolved["after"]["name"], resolved["exact"].items()
        found["exact"] = [Idle(f"exact.{key}", value, AfterPurification(), "after", after) for key, value in exact]
    if judges != "inputs":
        name, images = resolved["detector"]["name"], resolved["inspection"]["images"]
        found["inspection"] = [Idle("inspection.images", images, JudgesInputs(), "detector", name)]
    return found


def check(resolved: Plain) -> Switches:
    """The settings of a resolved configuration; ConfigError where it holds a key that nothing reads, or lacks one."""
    hints = get_type_hints(Switches)
    known = [*hints, *groups.BUILT]
    for key, value in resolved.items():
        if key not in known:
            raise ConfigError(_unread(key, value, known))
    if missing := [key for key in known if key not in resolved]:
        raise ConfigError(
            f"the configuration lacks '{missing[0]}'; expected {join_words(known)}. A `~{missing[0]}` deletes it: leave that out."
        )
    found = Switches(**{name: _converted(name, resolved[name], hint) for name, hint in hints.items()})
    for package in found.plugins:
        plugins.check(package)
    return found


def _converted(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return construct(hint, value, name)  # type: ignore[arg-type]
    return convert(value, hint, name)


def _unread(key: str, value: Any, known: list[str]) -> str:
    if key in groups.NAMES:  # an experiment or a scale, which set others' settings
        inside = f"{key}.{next(iter(value))}" if isinstance(value, dict) and value else key
        return (
            f"{inside} is set, and nothing reads it: a file of conf/{key}/ sets other groups' settings, so its first lines must "
            f"hold `# @package _global_`. Add that line to your file, or leave {inside} out."
        )
    return f"there is no setting '{key}', so nothing reads it.{did_you_mean(key, known)} There are {join_words(known)}."
