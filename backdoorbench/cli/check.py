"""bdx check DIR [KEY=VALUE ...], of a plugin or of yaml files for --config-dir"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from backdoorbench.cli import flags
from backdoorbench.cli.arguments import Parser, composed
from backdoorbench.cli.listing import count
from backdoorbench.config import catalog, plugins
from backdoorbench.config.compose import conf_dir
from backdoorbench.config.groups import NAMES
from backdoorbench.config.walk import files_below
from backdoorbench.errors import (
    USER_MISTAKE,
    AbsentData,
    BdxError,
    ConfigError,
    did_you_mean,
    first_line,
    join_words,
    paragraph,
)

if TYPE_CHECKING:
    from backdoorbench.pipeline.plan import Shared

GLOBAL = "_global_"  # the package of files that set other groups' settings
HYDRA = ("launcher", "sweeper")  # of its groups, those that a folder of one's own may extend


def carry_out(words: Sequence[str]) -> int:
    """Says of each yaml file in a folder of one's own whether it is right. Exit code."""
    parser = Parser(
        "check",
        "Every yaml file of a plugin, or of a folder for --config-dir: composed, built and planned; nothing is trained.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="DIR",
        help="a plugin, or your own yaml files, laid out as conf/ is; by default the plugins of --plugin DIR",
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="for every file, such as plugins=[PACKAGE]")
    chosen = parser.parse_intermixed_args(words)
    if chosen.folder is not None and "=" in chosen.folder and not Path(chosen.folder).is_dir():
        chosen.folder, chosen.settings = None, [chosen.folder, *chosen.settings]
    if chosen.folder is not None and is_plugin(Path(flags.folder(chosen.folder, "DIR of bdx check"))):
        with plugins.using([chosen.folder]):
            catalog.refuse_hidden()
            return told(plugins.at(chosen.folder).confs, chosen.settings)
    return told(_folders(chosen.folder), chosen.settings)


def told(folders: Sequence[Path], settings: Sequence[str]) -> int:
    """Says of each yaml file in these folders, laid out as conf/ is, whether it is right. Exit code."""
    files = [(folder, file) for folder in folders for file in _found(folder)]
    from backdoorbench.pipeline.plan import Shared
    from backdoorbench.screen import make_console

    console, shared, wrong = make_console(), Shared(), 0
    for folder, file in files:
        try:
            remark = judge(folder, file, settings, shared)
            console.print(Text(f"  ok     {file.relative_to(folder)}{remark and f': {remark}'}"), soft_wrap=True)
        except BdxError as error:
            wrong += 1
            said = Text(f"  wrong  {file.relative_to(folder)}: {paragraph(str(error))}")
            console.print(said, soft_wrap=True, style="yellow")
    console.print(Text(f"  {count(len(files), 'file')}: {len(files) - wrong} ok, {wrong} wrong"), style="dim")
    return USER_MISTAKE if wrong else 0


def is_plugin(folder: Path) -> bool:
    """Whether a folder is not laid out as conf/ is, but holds one that is, beside or inside of packages."""
    is_laid_out = any((folder / name).is_dir() for name in (*NAMES, *catalog.REFINED, "hydra"))
    return not is_laid_out and bool(plugins.look(folder.absolute()).confs)


def _folders(named: str | None) -> Sequence[Path]:
    """The folders that are to be judged: the one that was named, else those of the plugins that were."""
    own = [conf for plugin in plugins.known() if plugin.place for conf in plugin.confs]
    if named is None and not own:
        raise ConfigError(
            f"bdx check was given no folder; expected one of your own yaml files, or that of a plugin, as in bdx check DIR or "
            f"bdx check {plugins.FLAG} DIR. Name one."
        )
    return own if named is None else [Path(named)]


def _found(folder: Path) -> list[Path]:
    """Each file to be judged in a folder that is laid out as conf/ is; ConfigError where there is none."""
    files = [file for file in files_below(folder) if _is_meant(file)]
    if not files:
        raise ConfigError(
            f"'{folder}' holds no yaml file; expected some, in folders called as groups are: {join_words(list(NAMES))}."
        )
    return files


def judge(folder: Path, file: Path, settings: Sequence[str], shared: "Shared") -> str:
    """A remark on a file that is right, or nothing. Raises a BdxError, what is wrong with it."""
    from backdoorbench.config import yamls

    choices = chosen_by(file.relative_to(folder))
    if (conf_dir() / file.relative_to(folder)).is_file():
        raise ConfigError("bdx has a file of this name, which is read instead of yours. Rename yours, and its `name:`.")
    content = yamls.read(file)
    group = choices[0].partition("=")[0]
    package = yamls.package_of(catalog.read_text(file), file)
    if group in ("experiment", "scale") and len(choices) == 1 and package != GLOBAL:
        raise ConfigError(
            f"its first lines lack `# @package {GLOBAL}`, so its settings land below {group}., where nothing reads "
            "them. Add that line."
        )
    if (
        len(choices) == 1
        and (named := content.get("name")) != file.stem
        and catalog.find(group, str(named)) is not None
    ):
        raise ConfigError(
            f"its `name:` is '{named}', which another option of {group} is called: tables would show it as that one. Write "
            f"`name: {file.stem}`."
        )
    remark = ""
    for words in [[], *([word] for word in swept(content))]:
        with _blaming_plugins(settings):
            resolved = composed([*choices, *words, "hydra.mode=RUN", *settings], [str(folder)])
            remark = remark or planned(resolved, shared)
    return remark


@contextmanager
def _blaming_plugins(settings: Sequence[str]) -> Iterator[None]:
    """Whatever the code of a plugin raises inside is what is wrong with its file; an error of ours stays one."""
    try:
        yield
    except BdxError:
        raise
    except Exception as error:
        named = [word.partition("=")[2].strip("[] ") for word in settings if word.startswith("plugins=")]
        packages = [name.strip() for names in named for name in names.split(",")]
        place = plugins.blamed(error, [*packages, *plugins.trusted()])
        if not place:
            raise
        raise ConfigError(
            f"its class raises {type(error).__name__}: {first_line(error)} ({place}). Correct it."
        ) from error


def chosen_by(place: Path) -> list[str]:
    """The settings that make Hydra read the file at `place` below the folder: `defense=mine`; of an overlay, its two.

    Raises ConfigError where nothing reads it."""
    *above, name = place.parts
    stem = Path(name).stem
    if not name.endswith(".yaml"):
        raise ConfigError("nothing reads it: only files in .yaml are. Rename it, or move it away.")
    if len(above) == 1 and above[0] in NAMES:
        return [f"{above[0]}={stem}"]
    if len(above) == 2 and above[0] == "hydra" and above[1] in HYDRA:
        return [f"hydra/{above[1]}={stem}"]
    if len(above) == 3 and "/".join(above[:2]) in overlays():
        return [f"{above[1]}={above[2]}", f"{catalog.REFINED[above[0]]}={stem}"]
    raise ConfigError(_unread(above))


def overlays() -> set[str]:
    """`on/attack` and its like: folders of files that refine a method, as conf/config.yaml reads them."""
    from backdoorbench.config import yamls

    listed = yamls.read(conf_dir() / "config.yaml")["defaults"]
    names = [str(next(iter(item))) for item in listed if isinstance(item, dict)]
    return {name.removeprefix("optional ").partition("@")[0] for name in names if name.startswith("optional ")}


def swept(content: Any) -> Iterator[str]:
    """Each value of each setting that an experiment sweeps, as a setting of its own."""
    node = content
    for key in ("hydra", "sweeper", "params"):
        node = node.get(key) if isinstance(node, dict) else None
    for key, values in (node or {}).items() if isinstance(node, dict) else ():
        yield from _values(str(key), str(values))


def _values(key: str, values: str) -> list[str]:
    """`seed=0`, `seed=1` of `0,1`; what is no list of values, such as a range, is left to Hydra whole."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Sweep
    from hydra.errors import OverrideParseException

    try:
        (override,) = OverridesParser.create().parse_overrides([f"{key}={values}"])
    except OverrideParseException:
        raise ConfigError(
            f"hydra.sweeper.params sweeps {key} over '{values}', which cannot be read as values."
        ) from None
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [f"{key}={override._get_value_element_as_str(item)}" for item in value.list]
    return [] if isinstance(value, Sweep) else [f"{key}={values}"]


def planned(resolved: dict[str, Any], shared: "Shared") -> str:
    """Plans a run; a remark where its data set is not on this machine, which ends the looking there."""
    from backdoorbench.pipeline import plan

    if "download" in resolved["dataset"]:
        resolved["dataset"]["download"] = False
    try:
        plan.divide(plan.sketch(resolved, shared))
    except AbsentData:
        return f"{resolved['dataset']['name']} is not on this machine, so its images were not asked"
    return ""


def _unread(above: Sequence[str]) -> str:
    """What to say of a file in folders from which nothing is read."""
    if not above:
        return f"nothing reads it here: files lie in folders called as groups are, {join_words(list(NAMES))}. Move it into one."
    known = [*NAMES, *overlays()]
    here = "/".join(above[:2] if above[0] in catalog.REFINED else above[:1])
    if here in NAMES:
        return f"nothing reads it: the options of {here} lie right in {here}/. Move it there."
    if here in known:
        kind = catalog.REFINED[above[0]]
        return f"nothing reads it: a file there is called {here}/OPTION/{kind.upper()}.yaml. Move it."
    there = join_words(sorted(known))
    return f"nothing reads it: there is no folder {here}/.{did_you_mean(here, known)} There are {there}. Rename it."


def _is_meant(file: Path) -> bool:
    """Whether it is a yaml file, or was meant to be one: `mine.yml`, `mine.yaml.txt`, not `.mine.yaml.swp`."""
    suffixes = {suffix.lower() for suffix in file.suffixes}
    return bool(suffixes & {".yaml", ".yml"}) and not file.name.startswith(".")
