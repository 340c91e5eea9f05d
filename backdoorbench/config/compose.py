"""From yaml files to one resolved configuration. The only module below the sweeps and the command line that knows Hydra."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import posixpath
import re
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from backdoorbench.config import plugins
from backdoorbench.config.walk import files_below
from backdoorbench.errors import ConfigError, shown

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.types import Override

Plain = dict[str, Any]  # a resolved configuration: dicts, lists, strings, numbers, booleans, None
Load = Callable[[Sequence[str]], DictConfig]
Stamp = tuple[str, int, int, int, int]  # a file: what it is called, its number, its times, its length

DIGITS = 12  # significant ones of a float setting: enough for any that a person types, too few for what a sum of steps leaves
PRIMARY = "config"  # the file that a composition begins with
SEARCH_PATH = "hydra.searchpath"  # the setting of Hydra that names further folders of yaml files
BRINGS = "model"  # the group whose options bring others along as if they were typed
REMEMBERED = 500  # choices of options whose configurations are kept in memory, the last ones
NEUTRAL = "folder"  # the data set without facts of its own
ASK_THE_DATA_SET = (
    "attack",
    "defense",
    "detector",
    "after",
    "train",
)  # groups whose options refer to it, and to nothing else

REFERENCE = r"\$\{([\w.]+)\}"  # `${dataset.target}`
VARIABLE = r"oc\.env:\s*[\"']?([^,}\"'\s]+)"  # `${oc.env:BDX_DATA,data}`
OmegaConf.register_new_resolver("either", lambda own, else_: else_ if own is None else own, replace=True)
OmegaConf.register_new_resolver("option", lambda option: option_name(option), replace=True)  # in the defaults list


@cache
def conf_dir() -> Path:
    """The folder of the yaml files: the wheel's copy inside the package, else `conf/` beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if (inside / "config.yaml").is_file() else package.parent / "conf"


def places(folders: Sequence[str] = ()) -> list[Path]:
    """The folders of yaml files, in the order in which an option is looked for: ours, those of known plugins, the user's."""
    return [conf_dir(), *plugins.conf_dirs(), *(Path(folder) for folder in folders)]


def compose(overrides: Sequence[str] = (), folders: Sequence[str] = ()) -> Plain:
    """The resolved configuration that `bdx <overrides>` would run.

    folders  of the user's own yaml files (`--config-dir`), looked through after ours"""
    made = composer(overrides, folders)
    return made([*search_path(folders), *with_brought(overrides, folders)])


def composer(words: Sequence[str] = (), folders: Sequence[str] = (), primary: str = PRIMARY) -> Composer:
    """What composes such words, and remembers what it composed."""
    return _composer(tuple(places([*folders, *searched(words)])), primary)


@cache
def _composer(folders: tuple[Path, ...], primary: str) -> Composer:
    own = [str(folder) for folder in folders]
    further: list[Path] = []  # folders that a primary file's own hydra.searchpath names: known once it was read

    def opened() -> Load:
        from hydra.types import RunMode

        reader = loader(own)

        def load(choices: Sequence[str]) -> DictConfig:
            try:
                return reader.load_configuration(primary, list(choices), RunMode.RUN, from_shell=False)
            finally:
                sources = [each for each in reader.get_sources() if each.provider.startswith(SEARCH_PATH)]
                further[:] = [Path(place) for each in sources if (place := _searched(f"{each.scheme()}://{each.path}"))]

        return load

    def is_group(name: str) -> bool:
        return any((folder / name).is_dir() for folder in folders)

    return Composer(opened, is_group, own, primary, lambda: stamps([*folders, *further]))


def loader(folders: Sequence[str]) -> ConfigLoaderImpl:
    """What reads yaml files as Hydra does at the start of a run, in these folders after ours and those of known plugins. Each
    file is read once."""
    from hydra import version
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    from backdoorbench.config.kept import KeptFiles

    version.setbase("1.3")
    made = create_config_search_path(str(conf_dir()))
    there = (conf_dir(), *plugins.conf_dirs())
    for folder in dict.fromkeys(Path(folder).absolute() for folder in folders):
        if folder not in there:
            made.prepend("own", f"file://{folder}", anchor="schema")  # which Hydra wants to be last
    reader = ConfigLoaderImpl(made)
    reader.repository = KeptFiles(made)
    return reader


def stamps(folders: Sequence[Path]) -> frozenset[Stamp]:
    """What tells whether a yaml file in these folders was edited, came or went."""
    found: set[Stamp] = set()
    for file in (file for folder in folders for file in files_below(folder, ".yaml")):
        with contextlib.suppress(FileNotFoundError):
            found.add(stamp(file))
    return frozenset(found)


def stamp(file: Path) -> Stamp:
    """A file with its number, times and length. The time of a change is beside that of an edit, which `cp -p`, rsync and archives
    bring along."""
    status = file.stat()
    return str(file), status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size


@dataclass(frozen=True)
class Chosen:
    """What a choice of options makes, before any value is set.

    config     as Hydra composes it, without its own settings; not to be changed, nor is `resolved`
    written    the same as plain containers, its interpolations as they stand
    resolved   None where something is still to be given, or an interpolation does not plainly say what it refers to
    mentioned  names that its interpolations refer to
    brought    the words for what a network brings that a file chose
    sweeper    the option of hydra/sweeper; mode: what hydra.mode says, RUN or MULTIRUN, if anything
    variables  of the environment that its interpolations refer to, as they stood; None: not set
    """

    config: DictConfig
    written: Plain
    resolved: Plain | None
    mentioned: frozenset[str]
    brought: tuple[str, ...]
    sweeper: str
    mode: str | None
    variables: Mapping[str, str | None]

    def holds(self) -> bool:
        """Whether it would be made the same again, as far as the environment is concerned."""
        return all(os.environ.get(name) == value for name, value in self.variables.items())

    def takes(self, override: Override) -> bool:
        """Whether the override just sets one plain value that nothing else is computed from."""
        if override.is_delete() or override.is_add() or override.is_force_add() or override.package is not None:
            return False
        value = override.value()
        if not (value is None or isinstance(value, int | float | str)) or "${" in str(value) or value == "???":
            return False
        name = override.key_or_group
        if any(meets(name, other) for other in self.mentioned):
            return False
        *parents, key = name.split(".")
        node: Any = self.written
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        return isinstance(node, dict) and key in node and not isinstance(node[key], dict | list)


def meets(name: str, other: str) -> bool:
    """Whether two dotted names may be one, or one part of the other. A name that begins with a dot is relative to where it
    stands, so that its end alone is known."""
    if other.startswith("."):
        return f".{other.lstrip('.')}." in f".{name}."
    return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")


class Composer:
    """Composes configurations of which many choose the same options: each choice once from the yaml files, which takes Hydra a
    tenth of a second, values put in afterwards, which is what Hydra does in this order too.

    opened    what Hydra composes of overrides, its own settings included, of the yaml files as they are when it is called
    is_group  whether a name is that of a group of options
    folders   of yaml files, through which it looks; primary: the file that it begins with
    state     what a choice depends on beside its words; once it differs, what was composed is forgotten"""

    def __init__(
        self,
        opened: Callable[[], Load],
        is_group: Callable[[str], bool],
        folders: Sequence[str] = (),
        primary: str = PRIMARY,
        state: Callable[[], Hashable] = lambda: None,
    ) -> None:
        self.opened, self.is_group, self.state = opened, is_group, state
        self.folders, self.primary = folders, primary
        self.known: dict[tuple[str, ...], Chosen] = {}
        self.load, self.before = opened(), state()

    def __call__(self, overrides: Sequence[str]) -> Plain:
        """The resolved configuration of the run with these settings."""
        chosen = self.chosen_by(overrides)
        values = [override for text in overrides if not self.is_choice(override := parsed(text))]
        if chosen.resolved is None or not all(chosen.takes(override) for override in values):
            return plain(with_values(chosen.config, values))
        resolved = copy.deepcopy(chosen.resolved)
        for override in values:
            *parents, key = override.key_or_group.split(".")
            node: Any = functools.reduce(lambda at, part: at[part], parents, resolved)
            node[key] = rounded(override.value())
        return plugins.with_used(resolved)

    def chosen_by(self, overrides: Sequence[str]) -> Chosen:
        """What these words choose."""
        if (now := self.state()) != self.before:
            self.known, self.load, self.before = {}, self.opened(), now
        return self.chosen(tuple(text for text in overrides if self.is_choice(parsed(text))))

    def is_choice(self, override: Override) -> bool:
        """Whether Hydra has to be asked: it picks an option of a group, is of Hydra's own, or a sweep, which Hydra refuses."""
        if override.is_sweep_override() or override.key_or_group.partition(".")[0].partition("/")[0] == "hydra":
            return True
        return not isinstance(override.value(), dict) and self.is_group(override.key_or_group)

    def chosen(self, choices: tuple[str, ...]) -> Chosen:
        if choices not in self.known or not self.known[choices].holds():
            made = self.load(choices)
            more = brought_by_files(choices, made.hydra.runtime.choices, self.folders, self.primary)
            made = self.load([*choices, *more]) if more else made
            own = made.hydra
            asked = re.findall(VARIABLE, " ".join(texts(OmegaConf.to_container(made, resolve=False))))
            variables = {name: os.environ.get(name) for name in asked}
            with open_dict(made):
                del made["hydra"]
            if len(self.known) >= REMEMBERED:
                del self.known[next(iter(self.known))]
            written = typing.cast(Plain, OmegaConf.to_container(made, resolve=False))
            named = references(" ".join(texts(written)))
            try:
                resolved = resolve(made) if named is not None else None
            except OmegaConfBaseException:
                resolved = None
            mode = own.mode.name if own.mode is not None else None
            sweeper = str(own.runtime.choices["hydra/sweeper"])
            self.known[choices] = Chosen(made, written, resolved, named or frozenset(), more, sweeper, mode, variables)
        return self.known[choices]


def references(text: str) -> frozenset[str] | None:
    """The names that interpolations in a text refer to; None where one is of a kind that does not plainly say it, such as
    `${oc.select:seed,0}`, `${dataset[target]}` or one inside the name of another."""
    rest = re.sub(REFERENCE, "", text)
    is_plain = "${" not in re.sub(r"\$\{(?:either|oc\.env):[^${}]*\}", "", rest)  # with what they refer to taken out
    return frozenset(re.findall(REFERENCE, text)) if is_plain else None


@cache
def parsed(word: str) -> Override:
    """A word of the command line as Hydra reads it, with Hydra's own errors."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides([word])[0]


def with_values(config: DictConfig, values: Sequence[Override]) -> DictConfig:
    """A copy of the configuration, its values set as Hydra sets them, with Hydra's own errors."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    made = copy.deepcopy(config)
    ConfigLoaderImpl._apply_overrides_to_config(list(values), made)
    return made


def texts(value: Any) -> Iterator[str]:
    """Every text in nested containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def with_brought(words: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """The words, and after them the choices that a network among them brings along: its recipe, unless one was chosen.

    A data set brings network and recipe along by Hydra's own means. Those of a network that was chosen beside it would lose there
    to the data set's, so they are said as if typed. A sweep over networks says them job by job."""
    picked = picks(words)
    named = next((each.value() for each in reversed(picked) if each.key_or_group == BRINGS), None)
    made = {override.key_or_group for override in picked}
    said = brought(named, [*folders, *searched(words)]) if isinstance(named, str) else {}
    return [*words, *(f"{group}={option}" for group, option in said.items() if group not in made)]


def brought_by_files(
    words: Sequence[str], options: Mapping[str, str], folders: Sequence[str], primary: str = PRIMARY
) -> tuple[str, ...]:
    """The same choices of a network that no word chose but a file: an experiment, a data set, a scale. They rank as that file
    does: what it names itself stays, and so does what a file names that wins over it.

    options  by group, that the words come to"""
    typed = {override.key_or_group for override in picks(words)}
    if BRINGS in typed:
        return ()
    said = {
        group: option
        for group, option in brought(str(options.get(BRINGS)), folders).items()
        if group not in typed and options.get(group) != option
    }
    if not said:
        return ()
    listed = chosen_in_files(words, folders, primary)
    groups = [group for group, _ in listed]
    if BRINGS not in groups:  # as the primary file has it, over which every other one wins
        return ()
    rank = groups.index(BRINGS)
    stay = {group for place, (group, file) in enumerate(listed) if place < rank or file == listed[rank][1]}
    return tuple(f"{group}={option}" for group, option in said.items() if group not in stay)


def may_be_brought_by_files(words: Sequence[str], folders: Sequence[str], primary: str = PRIMARY) -> bool:
    """Whether such a file can be among those that these words read: one of ours that they name, or anyone else's. To compose
    them to find out takes a tenth of a second."""
    named = (f"{override.key_or_group}/{override.value()}" for override in picks(words))
    return bool(folders or plugins.known() or primary != PRIMARY) or any(_chooses_what_brings(name) for name in named)


@cache
def _chooses_what_brings(name: str) -> bool:
    """Whether an option of ours, such as `scale/cpu`, chooses a network that brings something along, itself or by its choices."""
    file = conf_dir() / f"{option_name(name)}.yaml"
    pairs = choices(file.read_text(encoding="utf-8")) if file.is_file() else []
    return any(
        group == BRINGS and brought(option) or _chooses_what_brings(f"{group}/{option}") for group, option in pairs
    )


def chosen_in_files(words: Sequence[str], folders: Sequence[str], primary: str = PRIMARY) -> list[tuple[str, str]]:
    """The groups of which a file overrides the option, each with the file that has its way; what wins over others comes first."""
    from hydra.types import RunMode

    found = loader(folders).compute_defaults_list(primary, list(words), RunMode.RUN).overrides
    files = {group: found.override_metadata[group].containing_config_path for group in found.override_choices}
    return [(group, file) for group, file in files.items() if file is not None]


def picks(words: Sequence[str]) -> list[Override]:
    """Those of the words that pick options of a group."""
    return [override for word in words if (override := _picks(word)) is not None]


def _picks(word: str) -> Override | None:
    """The word, where it picks options of a group, as far as the word alone tells; None where it sets something, or is none."""
    override = as_read(word)
    if override is None or "." in override.key_or_group or override.is_delete() or isinstance(override.value(), dict):
        return None
    return override


def brought(network: str, folders: Sequence[str] = (), extending: Sequence[str] = ()) -> dict[str, str]:
    """What a network's yaml chooses of other groups, and what those do that it extends (`defaults: [airbench]`), where it says
    nothing else itself.

    extending  those by which it was reached"""
    if not re.fullmatch(r"[\w. /-]{1,100}", network) or option_name(network) in extending:
        return {}
    files = [folder / BRINGS / f"{option_name(network)}.yaml" for folder in places(folders)]
    text = next((file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()), "")
    extended = [entry for entry in defaults(text) if isinstance(entry, str) and entry != "_self_"]
    inherited = [
        brought(name.removeprefix(f"/{BRINGS}/"), folders, [*extending, option_name(network)]) for name in extended
    ]
    return dict(pair for each in [*inherited, dict(choices(text))] for pair in each.items())


def option_name(option: str) -> str:
    """An option's name as its file is called, of the spellings that Hydra takes: `airbench.yaml`, `/airbench`, `./airbench`."""
    return posixpath.normpath(option.lstrip("/")).removesuffix(".yaml")


def defaults(text: str) -> list[Any]:
    """The defaults list of a yaml file's text; empty where it has none, or is none."""
    if "defaults" not in text:
        return []
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:  # told where it is composed
        return []
    listed = content.get("defaults") if isinstance(content, dict) else None
    return listed if isinstance(listed, list) else []


def choices(text: str) -> list[tuple[str, str]]:
    """(group, option) of each `override /train@_global_.train: fast` in the defaults list of a yaml file's text."""
    pairs = [pair for entry in defaults(text) if isinstance(entry, dict) for pair in entry.items()]
    found = [(re.fullmatch(r"override\s+/(\w+)(?:@\S+)?", str(key)), option) for key, option in pairs]
    return [(match[1], option) for match, option in found if match and isinstance(option, str) and "$" not in option]


def search_path(folders: Sequence[str]) -> list[str]:
    """The override that makes Hydra look through `folders` too."""
    from hydra.core.override_parser.types import Quote, QuotedString

    places = [QuotedString(f"file://{Path(folder).absolute()}", Quote.single).with_quotes() for folder in folders]
    return [f"{SEARCH_PATH}=[{','.join(places)}]"] if folders else []


def searched(words: Sequence[str]) -> list[str]:
    """The folders that a `hydra.searchpath` among words names. ConfigError where Hydra would not read it, or only one of two."""
    found = [(word, override) for word in words if (override := as_read(word)) and override.key_or_group == SEARCH_PATH]
    for word, override in found[:1]:
        if override.get_key_element() != SEARCH_PATH:
            raise ConfigError(
                f"Hydra looks through no folder of {shown(word)}. Say {SEARCH_PATH}=[FOLDER], or --config-dir FOLDER."
            )
    if len(found) > 1:
        raise ConfigError(
            f"{SEARCH_PATH} is given {len(found)} times, --config-dir of a verb included, and Hydra reads the first alone. Put "
            f"all folders into one list: {SEARCH_PATH}=[FOLDER,FOLDER]."
        )
    named = [value for _, override in found if isinstance(value := override.value(), list)]
    return [folder for place in itertools.chain(*named) if (folder := _searched(str(place)))]


def _searched(place: str) -> str:
    """The folder of one place of a search path, as Hydra has them: `DIR`, `file://DIR` or `pkg://PACKAGE`; empty for another."""
    kind, _, rest = place.rpartition("://")
    if kind != "pkg":
        return str(Path(rest).absolute()) if kind in ("", "file") else ""
    with contextlib.suppress(ImportError, ValueError):
        spec = find_spec(rest.replace("/", "."))
        return next(iter(spec.submodule_search_locations or ()), "") if spec is not None else ""
    return ""


def as_read(word: str) -> Override | None:
    """The word as Hydra reads it; None where it is none, which is told where it is composed."""
    from hydra.errors import OverrideParseException

    try:
        return parsed(word)
    except OverrideParseException:
        return None


def plain(config: DictConfig) -> Plain:
    """The configuration as plain resolved containers: OmegaConf's attribute access is too slow and too lenient for loops.

    Floats are rounded to 12 significant digits here, once, so that 0.06 and a sweep's 0.060000000000000005 are one setting.
    Known plugins that an option comes from are listed. ConfigError where a value refers to what is not there."""
    try:
        return plugins.with_used(resolve(config))
    except OmegaConfBaseException as error:
        raise ConfigError(unresolved(error)) from None


def resolve(config: DictConfig) -> Plain:
    """The same without the list of plugins, and with OmegaConf's own errors."""
    return typing.cast(Plain, rounded(OmegaConf.to_container(config, resolve=True, throw_on_missing=True)))


def unresolved(error: OmegaConfBaseException) -> str:
    """The message for a value that cannot be resolved: a reference to nothing, to itself, or a value still to be given."""
    key = error.full_key or "a setting"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is '???', which stands for a value that is still to be given. Give one: {key}=VALUE."
    reason = str(error).splitlines()[0].rstrip(".")
    return (
        f"{key} refers to what cannot be resolved ({reason}). Give a value, or a reference to another setting by its full name, "
        f"such as ${{dataset.target}}; bdx --cfg job prints every setting."
    )


def rounded(value: Any) -> Any:
    """`value` with the floats in it at 12 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def option(group: str, name: str) -> Plain:
    """The own keys of an option, ours or a known plugin's, as on a data set without facts of its own."""
    files = [folder / group / f"{name}.yaml" for folder in places()]
    file = next((file for file in files if file.is_file()), files[0])
    return copy.deepcopy(_option(group, stamp(file), stamp(conf_dir() / "dataset" / f"{NEUTRAL}.yaml")))


@cache
def _option(group: str, file: Stamp, neutral: Stamp) -> Plain:
    node = typing.cast(DictConfig, OmegaConf.load(file[0]))
    node.pop("defaults", None)  # what it chooses of others
    whole = OmegaConf.create({"dataset": OmegaConf.load(neutral[0]), group: node})
    return typing.cast(Plain, OmegaConf.to_container(whole[group], resolve=group in ASK_THE_DATA_SET))


def flat(config: Mapping[str, Any], prefix: str = "") -> Plain:
    """Nested settings by dotted keys; a mapping of nothing is a value, since it differs from one that is not there."""
    found: Plain = {}
    for name, value in config.items():  # a mapping that was typed may have numbers for names
        inside = flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {}
        found |= inside or {f"{prefix}{name}": value}
    return found
