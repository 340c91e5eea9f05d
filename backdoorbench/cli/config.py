"""bdx config RUN [--diff]"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.cli.arguments import Parser, composed, quoted, run_folder
from backdoorbench.config import plugins
from backdoorbench.config.compose import ASK_THE_DATA_SET, BRINGS, as_read, flat
from backdoorbench.config.groups import NAMES, SOURCE
from backdoorbench.errors import ConfigError, few, join_words

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

BRINGING = ("dataset", "experiment", "scale", "model")  # groups whose options choose those of others, in this order
HOW_TO_KNOW = f"Add {plugins.FLAG} DIR, the folder of the plugin, or --config-dir DIR, that of its yaml files"
UNTOLD = ("runtime", "tracker", "plugins", "rerun")  # parts that bear on no figure


def carry_out(words: Sequence[str]) -> int:
    """Prints a run's settings as yaml. Exit code."""
    parser = Parser("config", "Every setting of a run, as yaml; its first line is a command that repeats it.")
    parser.add_argument("run", metavar="RUN", help="its folder, or its key as bdx runs prints it")
    parser.add_argument("--diff", action="store_true", help="only what differs from the defaults of what it names")
    chosen = parser.parse_args(words)
    from backdoorbench.storage import record

    folder = run_folder(chosen.run)
    run = record.read(folder)
    config = run.config
    if remark := unknown_source(config, chosen.config_dirs):
        if chosen.diff:
            raise ConfigError(
                f"{remark}, of which the defaults are not known here. {HOW_TO_KNOW}, or leave --diff out."
            )
        print(f"# no command repeats it as it is: {remark}. {HOW_TO_KNOW}.")
        print(as_yaml(config), end="")
        return 0
    differing = differences(config, chosen.config_dirs)
    keys = untypable(differing)
    print(f"# no command repeats it as it is: {_remedy(keys)}" if keys else f"# {command(config, differing)}")
    if not keys and (remark := changed(run, differing, folder)):
        print(f"# which makes another run by now: {remark}")
    print(as_yaml(nested(differing)) if chosen.diff else as_yaml(config), end="")
    return 0


def unknown_source(config: Mapping[str, Any], folders: Sequence[str] = ()) -> str:
    """What a configuration takes from where nobody has named the place: options of a plugin or of a folder, or the code of a
    package that Python does not find. Empty where nothing."""
    known = choices(config, folders)
    lost = [
        f"{group}={node['name']}"
        for group in NAMES
        if group not in UNTOLD and group not in known and (node := config.get(group))
    ]
    packages = [name for name in config.get("plugins") or [] if name not in plugins.trusted()]
    brought = join_words([name for name in packages if lost or not plugins.files(name)])
    if lost:
        return f"this run's {join_words(lost)} came from {f'the plugin {brought}' if brought else 'a folder of --config-dir'}"
    return f"this run's code is of the package {brought}, which Python does not find" if brought else ""


def changed(run: "Run", differing: Mapping[str, Any], folder: Path) -> str:
    """What no command brings back: methods that have another version by now, and code of plugins that was edited since."""
    config = run.config
    said = [
        f"{group}={config[group]['name']} was of version {value}, and is of another one here"
        for group, value in ((_versioned(key), value) for key, value in differing.items())
        if group
    ]
    for key, digest in run.content.items():
        group, _, inner = key.partition(".")
        function = digest.rpartition(" of ")[0]
        path = config[group].get("_target_", "") if inner == SOURCE else function.replace(":", ".")
        package = plugins.of(path, config.get("plugins") or [])
        if package and plugins.digest(path, package) != digest.rpartition(" ")[2]:
            said.append(
                f"the code of {group}={config[group]['name']} was edited since; {folder / 'plugins'} holds what ran"
            )
    return "; ".join(dict.fromkeys(said))


def _versioned(key: str) -> str:
    """The group of which a dotted key is the version; empty of any other key."""
    group, _, inner = key.partition(".")
    return group if group in NAMES and inner == "version" else ""


def choices(config: Mapping[str, Any], folders: Sequence[str] = ()) -> dict[str, str]:
    """The option of each group that a configuration comes from. One with a name of its own (`dataset.name=mushrooms`) is that of
    its class."""
    from backdoorbench.config import catalog

    found: dict[str, str] = {}
    for group in NAMES:
        node = config.get(group, {})
        if group in UNTOLD or "name" not in node:
            continue
        options = catalog.names(group, folders)
        alike = [name for name in options if f"_target_: {node.get('_target_')}\n" in _text(group, name, folders)]
        if known := [name for name in [node["name"], *alike] if name in options]:
            found[group] = known[0]
    return found


def _text(group: str, name: str, folders: Sequence[str]) -> str:
    from backdoorbench.config import catalog

    file = catalog.find(group, name, folders)
    return catalog.read_text(file) if file is not None else ""


def differences(config: Mapping[str, Any], folders: Sequence[str] = ()) -> dict[str, Any]:
    """The options that are not the usual ones, as GROUP, and the settings, by dotted key, that differ from what these options say
    together. A setting that only follows the data set's is none. A mapping inside a network's may have any keys
    (`model.options`), so it is told as a whole."""
    named, found = choices(config, folders), dict[str, Any]()
    for group in sorted(named, key=lambda group: (*BRINGING, group).index(group)):
        usual = choices(composed([f"{group}={name}" for group, name in found.items()], folders), folders)
        if usual.get(group) != named[group]:
            found[group] = named[group]
    words = [f"{group}={name}" for group, name in named.items()]
    settings = {key: value for key, value in flat(config).items() if _is_told(key)}
    for is_due in (_is_followed, lambda key: True):
        whole = flat(composed([*words, *words_of(found, settings, NAMES)], folders))
        for key, value in settings.items():
            if is_due(key) and whole.get(key, ...) not in (value, "auto"):
                group, _, inner = key.partition(".")
                name = inner.partition(".")[0]
                node = config[group].get(name) if group == BRINGS else None
                found |= {f"{group}.{name}": node} if isinstance(node, Mapping) else {key: value}
    return found


def _is_told(key: str) -> bool:
    return key.partition(".")[0] not in UNTOLD and not key.endswith("._target_")


def _is_followed(key: str) -> bool:
    """Whether other settings may refer to this one."""
    return key.partition(".")[0] in ("dataset", "seed")


def words_of(differing: Mapping[str, Any], settings: Mapping[str, Any], without: Sequence[str] = ()) -> list[str]:
    """Differences as words of a command. A mapping inside a method's settings may stand for the data set's as a whole
    (`train.augment`), so it is said as a whole.

    settings  all of the configuration, by dotted key; without: keys that are left out"""
    words: dict[str, str] = {}
    for key, value in differing.items():
        group, *inner = key.split(".")
        if key in without or _versioned(key):  # which is that of the code here, whatever is typed
            continue
        if len(inner) > 1 and group in ASK_THE_DATA_SET:
            place = f"{group}.{inner[0]}"
            words[place] = typed(_mapping(place, settings))
        else:
            words[key] = typed(value)
    return [f"{key}={value}" for key, value in words.items()]


def _mapping(place: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings by dotted key have below one, as mappings again."""
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith(f"{place}."):
            *parents, last = key.removeprefix(f"{place}.").split(".")
            inside = made
            for parent in parents:
                inside = inside.setdefault(parent, {})
            inside[last] = value
    return made


def command(config: Mapping[str, Any], differing: Mapping[str, Any]) -> str:
    """The words that make this configuration of the defaults, for a shell."""
    order = {group: place for place, group in enumerate(NAMES)}
    ordered = dict(sorted(differing.items(), key=lambda item: order.get(item[0], len(order))))
    words = words_of(ordered, flat(config)) or [f"attack={config['attack']['name']}"]
    packages = [package for package in config.get("plugins") or [] if package not in plugins.trusted()]
    words += [f"plugins=[{','.join(packages)}]"] if packages else []
    return shlex.join(["bdx", *plugins.flags(), *words])


def typed(value: Any) -> str:
    """A value as Hydra's command line takes it, a text that would be read as something else in quotes."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_key(str(name))}: {typed(item)}" for name, item in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    return value if _is_plain(value) else quoted(value)


def _key(name: str) -> str:
    """A key inside a mapping as Hydra's command line takes it: without quotes, and a backslash before what would end it."""
    escaped = re.sub(r"[\\\\()\[\]{}:=,]", r"\\\g<0>", name)
    return re.sub(r"^[ \t]|[ \t]$", r"\\\g<0>", escaped)


def untypable(value: Any) -> list[str]:
    """The keys of mappings inside a value that come to something else, or to nothing, where they are typed. Records have all keys
    as texts."""
    if isinstance(value, list):
        return [key for item in value for key in untypable(item)]
    if not isinstance(value, Mapping):
        return []
    found = []
    for name, item in value.items():
        override = as_read(f"x={{{_key(str(name))}: 0}}")
        if override is None or json.dumps(override.value()) != json.dumps({str(name): 0}):
            found.append(str(name))
        found += untypable(item)
    return found


def _remedy(keys: Sequence[str]) -> str:
    """What to do about keys that nobody can type."""
    said = f"Hydra reads no {'key' if len(keys) == 1 else 'keys'} such as {few(map(repr, keys))} on a command line"
    return f"{said}. Put the settings that hold {'it' if len(keys) == 1 else 'them'} into a yaml file, and add --config-dir DIR."


def _is_plain(text: str) -> bool:
    """Whether a text stays this text without quotes: letters of ASCII and few other characters, and neither a number nor null,
    true or false."""
    if not re.fullmatch(r"[A-Za-z0-9/_.:+-]+", text) or text.lower() in ("null", "true", "false"):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings; of a group whose option is named, that beside its settings, as `name`."""
    made: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, last = [key, "name"] if key in NAMES else key.split(".")
        place = made
        for part in parents if key not in NAMES else [key]:
            place = place.setdefault(part, {})
        place[last] = value
    return made


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as yaml, in their order; nothing of nothing."""
    import yaml

    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True) if settings else ""
