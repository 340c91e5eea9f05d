"""Every yaml composes, builds, and says the same as its class; the order of precedence; what may be built at all."""

import ast
import copy
import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from hydra.errors import HydraException

import backdoorbench
from backdoorbench.config import catalog, groups
from backdoorbench.config.build import BESIDE, File, Folder, build, paths, settings
from backdoorbench.config.compose import compose, composer, conf_dir, option, plain, rounded, stamps, with_brought
from backdoorbench.defenses.none import NoDefense
from backdoorbench.errors import ConfigError, nearest
from backdoorbench.pipeline import plan
from backdoorbench.storage import store
from backdoorbench.training.recipe import Tuning

BUILT = [(group, name) for group in groups.BUILT if group != "tracker" for name in catalog.names(group)]
METHODS = [stage.group for stage in groups.STAGES]
OVERLAYS = [
    file
    for kind in catalog.REFINED
    for group in METHODS
    for file in sorted((conf_dir() / kind / group).glob("*/*.yaml"))
]


COMPOSED = [  # values of every kind, each beside choices of options
    ("attack=wanet", "dataset=gtsrb", "attack.poison_rate=0.060000000000000005"),
    ("model=timm", "model.timm_name=resnet10t"),  # its name refers to that, relative to where it stands
    ("dataset=cifar10", "dataset.target=3", "defense=fst", "scale=small"),
    ("defense=ft", "defense.lr=${train.lr}", "seed=3", "train.lr=0.5"),
    ("defense=fst", "+defense.note=one", "~tracker", "++seed=4"),
    ("dataset.augment={crop_padding:1,flip:false}", "train.milestones=[3,4]", "attack.sources=[]"),
    ("dataset.root='a, b'", "holdout.rate=null", "runtime.progress=off", "dataset.root=c"),
    ("model=airbench", "experiment=fst", "defense@beside=ft"),
]


@pytest.mark.wide
@pytest.mark.parametrize("words", COMPOSED, ids=" ".join)
def test_composing_is_what_hydra_composes_however_often(words: tuple[str, ...]) -> None:
    """Choices of options are remembered, values put in afterwards."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        try:
            expected: Any = plain(hydra_compose("config", overrides=with_brought(words)))
        except HydraException as error:
            expected = str(error)
    for _ in range(2):
        try:
            found: Any = compose(words)
        except HydraException as error:
            found = str(error)
        assert found == expected
        if isinstance(found, dict):
            found["attack"].clear()  # what was handed out is the caller's


@pytest.mark.wide
@pytest.mark.parametrize(
    "word", ["attack=nothing", "attack.nothing=1", "seed=1,2", "seed=[1", "~attack.nothing", "+attack=badnets"]
)
def test_a_word_that_hydra_refuses_is_refused_in_hydras_words(word: str) -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    compose([])
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"), pytest.raises(HydraException) as told:
        hydra_compose("config", overrides=[word])
    with pytest.raises(HydraException) as found:
        compose([word])
    assert type(found.value) is type(told.value) and str(found.value) == str(told.value)


def test_a_file_that_was_edited_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "attack" / "mine.yaml"
    file.parent.mkdir()
    for rate in (0.1, 0.25):
        file.write_text(f"# @package attack\ndefaults: [badnets]\npoison_rate: {rate}\n")
        assert compose(["attack=mine"], [str(tmp_path)])["attack"]["poison_rate"] == rate
    file.unlink()
    with pytest.raises(HydraException, match="Could not find 'attack/mine'"):
        compose(["attack=mine"], [str(tmp_path)])


def test_a_file_that_was_replaced_by_one_of_the_same_time_and_length_is_read_again(tmp_path: Path) -> None:
    """As rsync, archives and `cp -p` do."""
    (file := tmp_path / "a.yaml").write_text("seed: 1")
    first, status = stamps([tmp_path]), file.stat()
    assert stamps([tmp_path]) == first
    file.write_text("seed: 2")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (second := stamps([tmp_path])) != first
    (other := tmp_path / "b").write_text("seed: 3")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert stamps([tmp_path]) not in (first, second)


def test_a_file_that_a_primary_files_own_search_path_leads_to_is_read_again(tmp_path: Path) -> None:
    (far := tmp_path / "far").mkdir()
    (own := tmp_path / "own").mkdir()
    (own / "main.yaml").write_text(f"defaults: [_self_, part]\nhydra:\n  searchpath: ['file://{far}']\n")
    made = composer((), [str(own)], "main")
    with pytest.raises(HydraException, match="Could not load 'part'|Could not find 'part'"):
        made([])
    for seed in (1, 22):
        (far / "part.yaml").write_text(f"seed: {seed}\n")
        assert made.chosen_by([]).written == {"seed": seed}


REFERRING = {  # how a yaml file may refer to another setting -> a word that sets this one
    "${ seed }": "seed=3",
    "${oc.select:seed,7}": "seed=3",
    "${dataset[target]}": "dataset.target=3",
    "${${oc.env:NOWHERE,seed}}": "seed=3",
    "${either:${dataset[target]},4}": "dataset.target=3",
    "${.aim}": "attack.aim=3",
}


@pytest.mark.wide
@pytest.mark.parametrize(("said", "word"), REFERRING.items())
def test_a_setting_follows_what_it_refers_to_however_that_is_written(said: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text(f'defaults: [badnets]\naim: 0\ntarget: "{said}"\n')
    for words in (["attack=mine"], ["attack=mine", word], ["attack=mine", word]):
        found = compose(words, [str(tmp_path)])["attack"]["target"]
    assert found == 3


def test_a_part_of_what_only_follows_cannot_be_set_alone() -> None:
    """Nor in a sweep and in Python, where choices are remembered."""
    compose([])
    with pytest.raises(HydraException, match=r"Could not override 'train\.augment\.flip'"):
        compose(["train.augment.flip=false"])


def test_a_variable_of_the_environment_that_changed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "there"):
        monkeypatch.setenv("BDX_DATA", place)
        assert compose(["dataset=cifar10"])["dataset"]["root"] == f"{place}/cifar10"
    monkeypatch.delenv("BDX_DATA")
    assert compose(["dataset=cifar10"])["dataset"]["root"] == "data/cifar10"


@pytest.mark.wide
@pytest.mark.parametrize("said", ["${oc.env:'HERE'}", "${oc.env:${attack.of}}", "${oc.decode:${oc.env:HERE}}"])
def test_however_it_is_written(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text(f'defaults: [badnets]\nof: HERE\npattern: "{said}"\n')
    for place in ("grid3", "white3"):
        monkeypatch.setenv("HERE", place)
        assert compose(["attack=mine", "attack.of=HERE"], [str(tmp_path)])["attack"]["pattern"] == place


def test_a_variable_that_nothing_refers_to_makes_nothing_be_composed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = composer().chosen_by(["dataset=cifar10"])
    monkeypatch.setenv("PYTHONHASHSEED", "3")
    assert composer().chosen_by(["dataset=cifar10"]) is made


def test_what_an_editor_leaves_beside_an_open_file_is_no_yaml_file(tmp_path: Path) -> None:
    (tmp_path / ".#mine.yaml").symlink_to("somebody@somewhere.42")
    assert compose(["seed=3"], [str(tmp_path)])["seed"] == 3


def test_a_folder_that_is_typed_as_hydra_has_it_is_looked_through(tmp_path: Path) -> None:
    file = tmp_path / "attack" / "mine.yaml"
    file.parent.mkdir()
    for rate in (0.1, 0.25):
        file.write_text(f"defaults: [badnets]\npoison_rate: {rate}\n")
        found = compose([f"hydra.searchpath=[file://{tmp_path}]", "attack=mine"])
        assert found["attack"]["poison_rate"] == rate


@pytest.mark.wide
@pytest.mark.parametrize("word", ["[{0}]", "[file://{0}]", '["file://{0}"]', "[pkg://brought]"])
def test_a_network_of_a_folder_brings_its_recipe_however_the_folder_is_typed(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brought" / "model").mkdir(parents=True)
    (tmp_path / "brought" / "__init__.py").touch()
    (tmp_path / "brought" / "model" / "mine.yaml").write_text(
        "defaults: [demo, override /train@_global_.train: airbench]\n"
    )
    place = tmp_path / "brought" if "file" in word else "brought"
    words = [f"hydra.searchpath={word.format(place)}", "model=mine", "dataset=cifar10"]
    assert compose(words)["train"]["name"] == "airbench"


@pytest.mark.wide
@pytest.mark.parametrize("folder", ["a, b", "it's", "[x] (1)", "ü=1"])
def test_a_folder_of_yaml_files_may_be_called_anything(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder / "attack").mkdir(parents=True)
    (tmp_path / folder / "attack" / "mine.yaml").write_text("defaults: [badnets]\npoison_rate: 0.25\n")
    assert compose(["attack=mine"], [str(tmp_path / folder)])["attack"]["poison_rate"] == 0.25


SPELT: list[tuple[list[str], str]] = [  # words with an option as its file is called -> the same one
    (["defense=fst", "dataset=gtsrb"], "fst"),
    (["defense=fst", "dataset=gtsrb"], "gtsrb"),
    (["defense=fst", "experiment=given"], "fst"),
    (["defense=fst", "experiment=given"], "given"),
    (["attack=issba", "scale=small"], "issba"),
    (["experiment=fst", "scale=small"], "fst"),
    (["dataset=cifar10", "model=airbench"], "airbench"),
]


@pytest.mark.wide
@pytest.mark.parametrize("spelling", ["{}.yaml", "/{}", "./{}", "/{}.yaml"])
@pytest.mark.parametrize(
    ("words", "option"), SPELT, ids=lambda part: " ".join(part) if isinstance(part, list) else part
)
def test_an_option_is_the_same_however_it_is_spelt(words: list[str], option: str, spelling: str) -> None:
    """What refines it for a data set, an experiment or a scale is read too, and what a network brings."""
    said = [word.replace(f"={option}", f"={spelling.format(option)}") for word in words]
    assert said != words and compose([*said, "hydra.mode=RUN"]) == compose([*words, "hydra.mode=RUN"])


def test_so_it_is_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name, chosen in (("plain", "fst"), ("ended", "fst.yaml")):
        text = f"# @package _global_\ndefaults:\n  - override /defense: {chosen}\n  - override /dataset: gtsrb\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    made = [compose([f"experiment={name}"], [str(tmp_path)]) for name in ("plain", "ended")]
    assert made[0] == made[1] and made[0]["defense"] == compose(["defense=fst", "dataset=gtsrb"])["defense"]


def parts(overlay: Path) -> tuple[str, str, str]:
    """on/attack/badnets/gtsrb.yaml -> attack, badnets, dataset=gtsrb."""
    kind, group, method = overlay.relative_to(conf_dir()).parts[:3]
    return group, method, f"{catalog.REFINED[kind]}={overlay.stem}"


@pytest.mark.parametrize(("group", "name"), BUILT)
def test_every_option_matches_its_class(group: str, name: str) -> None:
    node = compose([f"{group}={name}"])[group]
    built = build(node, group)
    named = {"timm": "timm_name", "torchvision": "architecture"}  # options whose networks have names of their own
    assert built.name == node["name"] == (getattr(built, named[name]) if name in named else name)
    assert isinstance(node["version"], int)
    assert set(settings(type(built))) == set(node) - {"_target_", "version"}
    for field in dataclasses.fields(built):  # no default lives in two places
        later = (
            field.kw_only and dataclasses.asdict(field.default) == groups.LATER[group]
        )  # in code from before there were any
        assert field.default_factory is dataclasses.MISSING and (field.default is dataclasses.MISSING or later)


@pytest.mark.parametrize(("group", "name"), BUILT)
def test_every_option_is_explained(group: str, name: str) -> None:
    option = catalog.describe(group, name)
    assert option.command.startswith("bdx ") and option.summary
    assert all(knob.comment for knob in option.knobs if knob.name != "root"), [
        k.name for k in option.knobs if not k.comment
    ]
    if group in METHODS:
        assert set(option.method) == {"Idea", "Paper", "Follows", "Departs", "Cost"}


@pytest.mark.wide
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_overlay_composes_and_builds(overlay: Path) -> None:
    group, method, where = parts(overlay)
    resolved = compose([f"{group}={method}", where, "hydra.mode=RUN"])
    build(resolved[group], group)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_overlays_hold_only_what_differs(overlay: Path) -> None:
    """From the option's own value, or from that of another overlay, which it undoes."""
    from omegaconf import OmegaConf

    group, method, _ = parts(overlay)
    others = [other for other in OVERLAYS if other != overlay and parts(other)[:2] == (group, method)]
    base, changes, *rest = (
        OmegaConf.to_container(OmegaConf.load(f)) for f in (conf_dir() / group / f"{method}.yaml", overlay, *others)
    )
    assert isinstance(base, dict) and isinstance(changes, dict) and set(changes) <= set(base)
    for key, value in changes.items():
        assert base[key] != value or any(isinstance(other, dict) and other.get(key, value) != value for other in rest)


@pytest.mark.wide
def test_a_file_of_ones_own_is_of_the_version_of_the_class_that_it_names(tmp_path: Path) -> None:
    """Left out, its runs would stand for those of every version to come; of an older one, for what other code did."""
    (tmp_path / "attack").mkdir()
    file, ours = tmp_path / "attack/mine.yaml", (conf_dir() / "attack/issba.yaml").read_text(encoding="utf-8")
    ours = ours.replace("\nname: issba", "\nname: mine")
    now = option("attack", "issba")["version"]

    def sketch(text: str) -> plan.Sketch:
        file.write_text(text, encoding="utf-8")
        words = ["attack=mine", f"runtime.outputs={tmp_path}"]
        return plan.sketch(compose(words, [str(tmp_path)]), plan.Shared())

    whole, without = sketch(ours), sketch(ours.replace(f"\nversion: {now}", ""))
    assert whole.config["attack"]["version"] == without.config["attack"]["version"] == now
    assert whole.key == without.key and whole.infection_key == without.infection_key
    with pytest.raises(
        ConfigError, match=rf"attack.version is 1, and mine is of version {now} here. .* `version:` in your yaml"
    ):
        sketch(ours.replace(f"\nversion: {now}", "\nversion: 1"))
    with pytest.raises(ConfigError, match=rf"attack.version is 1, and issba is of version {now} here."):
        backdoorbench.build("attack/issba", version=1)


def test_precedence() -> None:
    assert compose([])["model"]["name"] == "demo"
    assert compose(["dataset=cifar10"])["model"]["name"] == "preact_resnet18"
    assert compose(["dataset=cifar10"])["train"]["name"] == "paper"
    assert compose(["dataset=cifar10", "model=vgg16_bn", "train=fast"])["model"]["name"] == "vgg16_bn"
    assert compose(["dataset=gtsrb", "defense=fst"])["defense"]["alpha"] == 0.1  # the overlay
    assert compose(["dataset=gtsrb", "defense=fst", "defense.alpha=0.3"])["defense"]["alpha"] == 0.3


def test_the_default_composition_is_what_it_was() -> None:
    resolved = compose(["attack=badnets", "defense=fst"])
    assert resolved["attack"] == {
        "_target_": "backdoorbench.attacks.badnets.BadNets", "version": 1, "name": "badnets", "mapping": "all_to_one",
        "target": 0, "sources": [], "poison_rate": 0.1, "rate_of": "all", "include_target_class": True, "cover_rate": 0.0,
        "mode": "replace", "abi": None, "pattern": "white3", "patch_file": None, "patch_size": 3, "position": None,
    }  # fmt: skip
    assert resolved["holdout"]["rate"] == 0.05 and resolved["holdout"]["kind"] == "reserved" and resolved["seed"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lrr": 1}, "defense has no setting 'lrr'. Did you mean 'lr'?"),
        ({"lr": "fast"}, "defense.lr is 'fast'; expected a number."),
        ({"epochs": 1.5}, "defense.epochs is 1.5; expected a whole number."),
        ({"reinit": 1}, "defense.reinit is 1; expected true or false."),
        ({"bn_mode": "trian"}, "defense.bn_mode is 'trian'; expected train or eval. Did you mean 'train'?"),
        ({"augment": {"flip": True}}, "defense.augment lacks 'crop'; add it to the yaml file that describes Augment."),
        (
            {"_target_": "os.system"},
            "defense._target_ is 'os.system', outside backdoorbench; only classes of these packages",
        ),
        (
            {"_target_": "backdoorbench.nowhere.Thing"},
            "defense._target_ is 'backdoorbench.nowhere.Thing', which does not exist",
        ),
        (
            {"_target_": "backdoorbench.config.build.build"},
            "defense._target_ is 'backdoorbench.config.build.build', which is no dataclass",
        ),
        ({"alpha": -1}, "defense.alpha is -1; expected a number at least 0. Change defense.alpha."),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, Any], said: str) -> None:
    node = compose(["defense=fst"])["defense"] | change
    with pytest.raises(ConfigError) as caught:
        build(node, "defense")
    assert str(caught.value).startswith(said)


def test_a_plugins_class_is_built_only_when_named() -> None:
    node = {"_target_": "collections.Counter"}
    with pytest.raises(ConfigError, match="outside backdoorbench"):
        build(node, "defense")
    with pytest.raises(ConfigError, match="which is no dataclass"):
        build(node, "defense", ["collections"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("fts", "fst"), ("FST", "fst"), ("blended_", "blended"), ("bandets", "badnets"), ("xyzzy", None)],
)
def test_suggestions(typed: str, meant: str | None) -> None:
    close = nearest(typed, ["ft", "fst", "none", "blended", "badnets"])
    assert close[:1] == ([meant] if meant else [])


def test_python_repeats_no_default_of_a_yaml() -> None:
    """Dataclasses that a yaml describes define no default; a call of a knob's name with a literal would be a second home."""
    package = Path(backdoorbench.__file__).parent
    for folder in ("attacks", "defenses", "detectors"):
        for file in sorted((package / folder).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and file.name != "base.py":
                    given = [item for item in node.body if isinstance(item, ast.AnnAssign) and item.value is not None]
                    assert all("ClassVar" in ast.unparse(item.annotation) for item in given), file


def test_runtime_does_not_move_a_key_and_every_other_setting_does() -> None:
    resolved = compose(["attack=badnets", "defense=fst"])
    made = plan.run_settings(resolved, "digest")
    assert "runtime" not in made and "rerun" not in made
    moved = plan.run_settings({**resolved, "runtime": {"device": "other"}, "rerun": True, "force": True}, "digest")
    assert moved == made

    def changed(node: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        return [p for k, v in node.items() for p in (changed(v, (*path, k)) if isinstance(v, dict) else [(*path, k)])]

    for path in changed(made):
        if path in (("format",), ("dataset", "digest"), ("holdout", "source")):
            continue
        other = copy.deepcopy(resolved)
        node = other
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = "changed"
        if path[-1] == "checkpoint" or path[-1].endswith("_file"):
            node[path[-1]] = __file__
        if path[-1] == "_target_":
            node[path[-1]] = "backdoorbench.defenses.none.NoDefense"
        assert plan.run_settings(other, "digest") != made, path
    for change in ({"kind": "seen"}, {"kind": "foreign"}, {"split": "test"}, {"per_class": 10}):
        other = {**resolved, "holdout": {**resolved["holdout"], **change}}
        assert plan.run_settings(other, "digest") != made, change


def test_keys_hold_a_holdouts_kind_under_its_first_name() -> None:
    """Infections and runs from before there were kinds are found again."""
    for source, words in {
        "withheld": [], "train_overlap": ["holdout.kind=seen"], "test": ["holdout.split=test"], "folder": ["holdout.kind=foreign"],
    }.items():  # fmt: skip
        resolved = compose(words)
        made = plan.run_settings(resolved, "digest")["holdout"]
        assert made["source"] == source and not made.keys() & {"kind", "split", "per_class", "validate"}
        assert groups.as_called_now({"holdout": made})["holdout"] == {
            key: value for key, value in resolved["holdout"].items() if key not in ("per_class", "validate")
        }
    keys = {
        name: store.key("run", plan.run_settings(compose([f"holdout={name}", "train.precision=float32"]), "digest"))
        for name in ("standard", "backdoorbench", "fst", "fmp")
    }
    assert keys == {
        "standard": "852c2c8c9b94",
        "backdoorbench": "d4d978de1fa3",
        "fst": "3a5379699d73",
        "fmp": "e2b2fdb4344f",
    }


def test_a_data_sets_place_is_no_part_of_a_key() -> None:
    here, there = (compose(["dataset=cifar10", f"dataset.root={root}"]) for root in ("/a", "/b"))
    assert plan.run_settings(here, "digest") == plan.run_settings(there, "digest")
    assert plan.run_settings(here, "digest") != plan.run_settings(here, "other")


def test_a_holdouts_images_are_part_of_a_key_and_their_place_is_not(tmp_path: Path) -> None:
    keys = []
    for folder, content in (("one", b"0"), ("two", b"0"), ("three", b"1")):
        (tmp_path / folder / "cat").mkdir(parents=True)
        (tmp_path / folder / "cat" / "0.png").write_bytes(content)
        resolved = compose(["holdout.kind=foreign", f"holdout.root={tmp_path / folder}"])
        keys.append(plan.run_settings(resolved, "digest"))
    assert keys[0] == keys[1] != keys[2]


def test_a_setting_is_a_file_by_its_type_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content decides, however the setting is called; nested ones and those that stand beside others are found too."""

    @dataclasses.dataclass(frozen=True)
    class Inner:
        mask: File | None

    @dataclasses.dataclass(frozen=True)
    class Method:
        name: str
        pattern_path: File
        pictures: Folder | None
        inner: Inner
        beside: Annotated[Tuning, BESIDE]

    node = {"name": "x", "pattern_path": "a.png", "pictures": None, "inner": {"mask": "b.png"}, "lr": 0.1}
    assert paths(Method, node) == {"pattern_path": "file", "inner.mask": "file"}
    assert paths(Method, node | {"pictures": "c"})["pictures"] == "folder"

    picture = tmp_path / "pattern"
    resolved = compose(["attack=badnets"])
    monkeypatch.setattr(plan, "target", lambda node, group, plugins: Method if group == "attack" else NoDefense)
    resolved["attack"] |= {"pattern_path": str(picture), "inner": {"mask": None}}
    keys = []
    for content in (b"0", b"1", b"0"):
        picture.write_bytes(content)
        keys.append(plan.run_settings(resolved, "digest")["attack"]["pattern_path"])
    assert keys[0] == keys[2] != keys[1] and len(keys[0]) == 64
    picture.unlink()
    with pytest.raises(
        ConfigError, match="attack.pattern_path is '.*pattern', which is no file; expected the path of an"
    ):
        plan.run_settings(resolved, "digest")


def test_numbers_that_mean_the_same_have_one_key() -> None:
    keys = {
        store.key("run", plan.run_settings(compose(["attack=badnets", f"attack.poison_rate={said}"]), "digest"))
        for said in ("0.06", "0.060000000000000005", "6e-2", "0.05999999999999999")
    }
    assert len(keys) == 1
    assert rounded({"a": [0.1 + 0.2, 1 / 3], "b": 5, "c": True}) == {"a": [0.3, 0.333333333333], "b": 5, "c": True}
