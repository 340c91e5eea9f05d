"""Thirty and more things a user can get wrong: one exact paragraph each, exit code 2, no traceback, nothing lost."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from PIL import Image
from safetensors.torch import save_file

from backdoorbench.cli.arguments import LISTED
from backdoorbench.cli.main import main
from backdoorbench.config import catalog
from backdoorbench.config.compose import conf_dir
from backdoorbench.reporting import comebacks, report

SMALL = [*QUICK, "train.epochs=1"]
KNOWN = (
    "seed, control, curve, gates, inspection, exact, runtime, force, reconstruct, rerun, fail_fast, plugins, attack, defense, detector, after, "
    "dataset, model, train, holdout and tracker"
)
MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown option": (
        ["defense=fts"],
        "defense 'fts' is unknown. Did you mean 'fst' or 'ft'? All of them: {defenses}; bdx list defense describes them. One of your own: add --plugin DIR.",
    ),
    "unknown option, capitals": (
        ["attack=BadNets"],
        "attack 'BadNets' is unknown. Did you mean 'badnets' or 'wanet'? All of them: {attacks}; bdx list attack describes them. One of your own: add --plugin DIR.",
    ),
    "unknown group": (
        ["defnse=fst"],
        "the configuration has no setting 'defnse'. Did you mean 'defense'? Correct the name; bdx --cfg job prints the whole "
        "configuration.",
    ),
    "unknown key": (
        ["defense=fst", "defense.lrr=1"],
        "defense has no setting 'lrr'. Did you mean 'lr'? Correct the name; it knows _target_, alpha, augment, batch_size, bn_mode, "
        "epochs, lr, momentum, name, project, reinit, schedule, strength, trainable, version and weight_decay.",
    ),
    "unknown key, appended": (
        ["defense=fst", "+defense.lrr=1"],
        "defense has no setting 'lrr'. Did you mean 'lr'? It knows alpha, augment, batch_size, bn_mode, epochs, lr, momentum, name, "
        "project, reinit, schedule, strength, trainable and weight_decay.",
    ),
    "key of another method": (
        ["defense=ft", "defense.alpha=0.1"],
        "defense has no setting 'alpha'. Correct the name; it knows _target_, augment, batch_size, bn_mode, "
        "epochs, keep_head_norm, lr, momentum, name, schedule, version and weight_decay.",
    ),
    "a part of what is taken whole": (
        ["defense=pbe", "defense.augment.rotation=10"],
        "defense.augment is dataset.augment as a whole, so 'rotation' cannot be set in it alone. Set dataset.augment.rotation, which it "
        "follows, or give defense.augment whole, as 'defense.augment={{rotation: …, …}}'; bdx --cfg job prints what it holds.",
    ),
    "unknown verb": (
        ["repot", "outputs"],
        "'repot' is no verb of bdx. Did you mean 'report'? The verbs are list, show, report, plot, preview, export, reproduce, runs, cache, plan, check, inspect, clean, new, config and cite; a run is described by "
        "settings, such as attack=badnets.",
    ),
    "plan of a search": (
        ["plan", "hydra/sweeper=tune", "seed=0,1"],
        "bdx plan lists the runs of a grid, and a search chooses its runs as it goes. Leave hydra/sweeper out, and list values.",
    ),
    "unknown launcher": (
        ["-m", "hydra/launcher=pol", "seed=0,1"],
        "hydra/launcher=pol is not there. Those here: {launchers}.",
    ),
    "pool without workers": (
        ["-m", "hydra/launcher=pool", "hydra.launcher.workers=0", "seed=0,1"],
        "hydra.launcher.workers is 0; expected a number at least 1. Change hydra.launcher.workers.",
    ),
    "unknown group to list": (
        ["list", "atack"],
        "group 'atack' is unknown. Did you mean 'attack'? The groups are attack, defense, detector, after, dataset, model, train, holdout, "
        "experiment, scale, runtime and tracker.",
    ),
    "unknown option to show": (
        ["show", "attack=blend"],
        "attack 'blend' is unknown. Did you mean 'blind' or 'blended'? All of them: {attacks}; bdx list attack describes them. One of your own: add --plugin DIR.",
    ),
    "no group": (
        ["defense=null"],
        "defense is 'null'; expected one of its options: {defenses}. Say defense=none for nothing, where that is one of them.",
    ),
    "a deleted group": (
        ["~defense"],
        "'~defense' deletes the group defense, of which every run has an option: {defenses}. Say defense=none for nothing, where "
        "that is one of them.",
    ),
    "a deleted setting": (["~seed"], f"the configuration lacks 'seed'; expected {KNOWN}. A `~seed` deletes it: leave that out."),
    "a key that nothing reads": (["+foo=1"], f"there is no setting 'foo', so nothing reads it. There are {KNOWN}."),
    "a key that nothing reads, nearly right": (
        ["+reconstruc=true"],
        f"there is no setting 'reconstruc', so nothing reads it. Did you mean 'reconstruct' or 'control'? There are {KNOWN}.",
    ),
    "a key below a setting": (["+curve.ever=1"], "curve has no setting 'ever'. Did you mean 'every'? It knows every and images."),
    "a key below runtime": (
        ["+runtime.workers=1"],
        "runtime has no setting 'workers'. It knows data_root, device, outputs, progress, snapshot_seconds and threads.",
    ),
    "a mapping for a word": (["+control.x=1"], "control is {{'x': 1}}; expected cached, train or off."),
    "a key of an experiment": (
        ["+experiment.rate=1"],
        "experiment.rate is set, and nothing reads it: a file of conf/experiment/ sets other groups' settings, so its first lines "
        "must hold `# @package _global_`. Add that line to your file, or leave experiment.rate out.",
    ),
    "a switch that is none": (["force=3"], "force is 3; expected true or false."),
    "a misspelt control": (["control=traim"], "control is 'traim'; expected cached, train or off. Did you mean 'train'?"),
    "no threads": (["runtime.threads=0"], "runtime.threads is 0; expected a number between 1 and 1024. Change runtime.threads."),
    "a curve that goes back": (["curve.every=-1"], "curve.every is -1; expected a number at least 0. Change curve.every."),
    "an infinite rate": (["train.lr=inf"], "train.lr is inf; expected a finite number. Change train.lr."),
    "a gate beyond all": (["gates.asr_floor=2"], "gates.asr_floor is 2; expected a number between 0 and 1. Change gates.asr_floor."),
    "a plugin that is not there": (
        ["plugins=[no_such_package]"],
        "plugins names 'no_such_package', which cannot be imported; expected the name of a package that Python finds. Install it, or "
        "add --plugin DIR, the folder that holds it (in Python, backdoorbench.plugin(\"DIR\")).",
    ),
    "several values without -m": (
        ["attack.poison_rate=0.1,0.2"],
        "'attack.poison_rate=0.1,0.2' holds several values, and this is no sweep. Give one value, or add -m to run them all.",
    ),
    "unreadable setting": (
        ["attack.position=(1"],
        "'attack.position=(1' cannot be read as a setting (Error parsing override 'attack.position=(1'). Write KEY=VALUE, and quote "
        "values with blanks, commas or brackets twice: \"key='a b'\".",
    ),
    "a name that Hydra cannot read": (
        ["model=module", "model.options={é: 1}"],
        "'model.options={{é: 1}}' cannot be read as a setting (LexerNoViableAltException: model.options={{é: 1}}). Write KEY=VALUE, or "
        "\"KEY={{NAME: VALUE, …}}\". A name stands without quotes: letters of ASCII, digits, blanks between them and any of "
        "-_./+$%*@?|, or one of ()[]{{}}:=, behind a backslash; a text with anything else is quoted: {{NAME: 'é'}}. Put another name into "
        "a yaml file, and add --config-dir DIR.",
    ),
    "wrong type": (["train.epochs=many"], "train.epochs is 'many'; expected a whole number."),
    "wrong choice": (
        ["attack.pattern=white33"],
        "attack.pattern is 'white33'; expected white3, checker3, grid3, grid10, white4, random or image. Did you mean 'white3' or 'white4'?",
    ),
    "a seed that is no number": (["seed=zero"], "seed is 'zero'; expected a whole number."),
    "poison rate above one": (
        ["attack.poison_rate=10"],
        "attack.poison_rate is 10; expected a number between 0 and 1. Change attack.poison_rate.",
    ),
    "poison rate below zero": (
        ["attack.poison_rate=-0.1"],
        "attack.poison_rate is -0.1; expected a number between 0 and 1. Change attack.poison_rate.",
    ),
    "blend ratio out of range": (
        ["attack=blended", "attack.train_ratio=20"],
        "attack.train_ratio is 20; expected a number between 0 and 1. Change attack.train_ratio.",
    ),
    "target out of range": (
        ["attack.target=10"],
        "attack.target or attack.sources names class 10, but the data set has 10 classes, numbered 0 to 9. Choose one of those.",
    ),
    "no sources": (
        ["attack.mapping=source_specific"],
        "attack.sources is [] with attack.target=0; a source-specific attack needs at least one source class other than the target. "
        "Set, for instance, attack.sources=[1].",
    ),
    "covers without sources": (
        ["attack.cover_rate=0.1"],
        "attack.cover_rate is 0.1, and nothing reads it beside attack.mapping=all_to_one: it acts only with "
        "attack.mapping=source_specific. Leave attack.cover_rate out, or change attack.mapping.",
    ),
    "patch image not given": (
        ["attack.pattern=image"],
        "attack.pattern is image with attack.patch_file=None; an image patch needs both. Set attack.pattern=image "
        "attack.patch_file=FILE, or neither.",
    ),
    "patch image missing": (
        ["attack.pattern=image", "attack.patch_file=nowhere.png"],
        "attack.patch_file is 'nowhere.png', which is no file; expected the path of an existing one.",
    ),
    "holdout too small": (
        ["holdout.rate=0.001", "defense=fst"],
        "holdout.rate=0.001 of 400 training images is 0; expected at least one image for each of the 10 classes and fewer than the "
        "400 images they are drawn from. Set holdout.rate between 0.025 and 0.9975.",
    ),
    "holdout larger than the set": (
        ["holdout.rate=1", "defense=fst"],
        "holdout.rate=1 of 400 training images is 400; expected at least one image for each of the 10 classes and fewer than the 400 "
        "images they are drawn from. Set holdout.rate between 0.025 and 0.9975.",
    ),
    "no holdout for a defense that needs one": (
        ["holdout.rate=0", "defense=fst"],
        "fst needs clean images, but holdout.rate is 0; give it some, such as holdout.rate=0.05, or pick a defense that needs none "
        "(bdx list defenses).",
    ),
    "holdout overlapping with the test set": (
        ["dataset=folder", "dataset.root=tree", "dataset.size=32", "model=demo", "holdout.kind=foreign", "holdout.root=tree/test",
         "dataset.train_size=null", "dataset.test_size=null", "defense=ft"],
        "4 of the 4 holdout images are also test images; a defense must not see what it is judged by. Remove them from holdout.root, "
        "or take holdout.kind=reserved holdout.split=test, whose images leave the test set.",
    ),
    "data set missing": (
        ["dataset=folder", "dataset.root={tmp}/nowhere"],
        "dataset.root is {tmp}/nowhere, which does not exist. folder needs there train/ and test/ with a folder of images a class, or another layout of docs/data.md. "
        "Unpack the data there, or correct dataset.root.",
    ),
    "data set empty": (
        ["dataset=folder", "dataset.root={tmp}/empty"],
        "dataset.root is {tmp}/empty, an empty folder. folder needs there train/ and test/ with a folder of images a class, or another layout of docs/data.md. "
        "Unpack the data there, or correct dataset.root.",
    ),
    "data set corrupt": (
        ["dataset=folder", "dataset.root={tmp}/corrupt", "dataset.size=32", "dataset.train_size=null", "dataset.test_size=null"],
        "1 of 8 images of folder cannot be decoded: {tmp}/corrupt/train/b/0.png (cannot identify image file). Copy them again from "
        "the original, or remove them.",
    ),
    "data set without a root": (
        ["dataset=folder", "dataset.root=null"],
        "dataset.root is null. folder needs a folder with train/ and test/ with a folder of images a class, or another layout of docs/data.md. Add dataset.root=FOLDER.",
    ),
    "more images than there are": (
        ["dataset.train_size=5000"],
        "dataset.train_size is 5,000, but the train split of digits holds 1,437 images. Give at most that many, or null for all.",
    ),
    "network unfit for the resolution": (
        ["model=vgg11_bn", "dataset.size=16"],
        "model 'vgg11_bn' is to read images of 16 px, but it halves the side until nothing is left; it needs at least 32 px. Choose a "
        "larger dataset.size, or a network that halves less often.",
    ),
    "checkpoint missing": (
        ["model.checkpoint=nowhere.safetensors"],
        "model.checkpoint is 'nowhere.safetensors', which is no file; expected the path of an existing one.",
    ),
    "checkpoint of another shape": (
        ["model.checkpoint=other.safetensors"],
        "model.checkpoint=other.safetensors holds the weights of another network than demo for 10 classes at 32 pixels: its names are "
        "linear.weight, those of that conv1.weight, layer1.0.bn1.weight, layer1.0.bn1.bias and 51 more, and 1 are the same. Name the "
        "network that it is of, as docs/your-model.md says.",
    ),
    "checkpoint that is no state dict": (
        ["model.checkpoint=text.pt"],
        "model.checkpoint=text.pt is a text file; expected weights of PyTorch. Name the file of weights instead.",
    ),
    "device absent": (
        ["runtime.device=tpu"],
        "runtime.device is 'tpu', but this machine offers {devices}. Set runtime.device to one of them, or to auto.",
    ),
    "code outside the package": (
        ["defense=fst", "defense._target_=os.system"],
        "defense._target_ is 'os.system', outside backdoorbench; only classes of these packages are built. If you trust that code, "
        "add --plugin DIR, the folder that holds it (in Python, backdoorbench.plugin(\"DIR\")); a run takes plugins=[os] too.",
    ),
    "outputs not writable": (
        ["runtime.outputs=text.pt/outputs"],
        "text.pt/outputs/cache/locks cannot be written (Not a directory). Name a place that you may write to; what "
        "runs leave goes where runtime.outputs says.",
    ),
    "batch size too small": (
        ["train.batch_size=1"],
        "train.batch_size is 1; expected a number at least 2. Change train.batch_size.",
    ),
    "report of nothing": (
        ["report", "empty"],
        "no record.json lies below empty; expected at least one run. Run something first: bdx attack=badnets defense=fst.",
    ),
    "report of no folder": (
        ["report", "nowhere"],
        "'nowhere' is no folder; expected one that holds runs, such as outputs/. Name another.",
    ),
    "report in an unknown format": (
        ["report", "empty", "--format", "pdf"],
        "bdx report: argument --format: invalid choice: 'pdf' (choose from {formats}). {report}",
    ),
    "report of an unknown metric": (
        ["report", "empty", "--metric", "asr,acc"],
        "--metric is 'acc'; expected some of ca, asr, ra, der, holdout_ca, seconds, memory, device_memory, energy, images_per_second, auroc, tpr_1, tpr_5, tpr_10, tpr, fpr, precision, anomaly_index, any_flagged, target_flagged and {afterwards} of after-attacks. Change --metric.",
    ),
    "verdicts, a line a run": (
        ["report", "empty", "--verdicts", "--format", "runs-csv"],
        "bdx report: argument --verdicts: runs-csv holds one line a run, on which it does not bear. {report}",
    ),
    "limit that is no number": (["report", "empty", "--ca-loss", "3%"], "--ca-loss is '3%'; expected a number. Change --ca-loss."),
    "limit below nothing": (
        ["report", "empty", "--ca-loss", "-1"],
        "--ca-loss is -1; expected a number between 0 and 100. Change --ca-loss.",
    ),
    "limit that nothing meets": (
        ["report", "empty", "--verdicts", "--asr-below", "0"],
        "--asr-below is 0; expected a number between 0.01 and 100. Change --asr-below.",
    ),
    "limit that is none": (
        ["report", "empty", "--asr-below=nan"],
        "--asr-below is nan; expected a number between 0.01 and 100. Change --asr-below.",
    ),
    "report by rows alone": (["report", "empty", "--rows", "attack"], "bdx report: argument --rows: it goes with --columns. {report}"),
    "report by rows as csv": (
        ["report", "empty", "--rows", "attack", "--columns", "defense", "--format", "runs-csv"],
        "bdx report: argument --rows: runs-csv holds one line a run, on which it does not bear. {report}",
    ),
    "page without a file": (["report", "empty", "--format", "html"], "bdx report: argument --format: html needs --output FILE. {report}"),
    "features without a page": (
        ["report", "empty", "--tsne", "empty"],
        "bdx report: argument --tsne: it goes with --format html; alone, bdx plot tsne DIR draws it. {report}",
    ),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tiny image tree, a corrupt one, an empty folder, and files that are no checkpoints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for tree in ("tree", "corrupt"):
        for split in ("train", "test"):
            for label in ("a", "b"):
                folder = tmp_path / tree / split / label
                folder.mkdir(parents=True)
                for index in range(2):
                    shade = 40 * index + (100 if split == "train" else 0) + (20 if label == "a" else 0)
                    Image.new("RGB", (32, 32), (shade, shade, shade)).save(folder / f"{index}.png")
    (tmp_path / "corrupt" / "train" / "b" / "0.png").write_bytes(b"no image")
    (tmp_path / "text.pt").write_text("no weights")
    save_file({"linear.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    return tmp_path


def devices() -> str:
    """What this machine offers, as the message lists it."""
    cuda = (
        ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    )
    return ", ".join(["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])])


def launchers() -> str:
    """Ours, Hydra's own, and those of plugins that happen to be installed."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # which registers them
    ours = {file.stem for file in (conf_dir() / "hydra" / "launcher").glob("*.yaml")}
    stored = ConfigStore.instance().list("hydra/launcher")
    return ", ".join(sorted(ours | {name.removesuffix(".yaml") for name in stored}))


def formats() -> str:
    """The formats of reports as argparse lists choices, which some of its versions quote."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--of", choices=["terminal", "csv", "runs-csv", "classes-csv", "md", "latex", "html"])
    with pytest.raises(argparse.ArgumentError) as caught:
        parser.parse_args(["--of", ""])
    return caught.value.message.partition("(choose from ")[2].removesuffix(")")


@pytest.mark.wide
@pytest.mark.parametrize("name", MISTAKES)
def test_one_paragraph_exit_two(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = MISTAKES[name]
    words = [word.replace("{tmp}", str(place)) for word in words]
    if "=" in words[0]:  # a run: small, where the mistake itself says nothing else
        set_here = {word.partition("=")[0] for word in words}
        words = [*(setting for setting in SMALL if setting.partition("=")[0] not in set_here), *words]
    code = main(words)
    shown = capsys.readouterr().err
    usage = (
        "Expected: bdx report [-h] [--config-dir DIR] [--plugin DIR] [--rows LIST] [--columns LIST] [--metric LIST] [--format "
        "{terminal,csv,runs-csv,classes-csv,md,latex,html}] [--verdicts] [--statistics] [--against DEFENSE] [--ca-loss POINTS] [--asr-below PERCENT] [--names FILE] [--published [FIGURES]] [--output FILE] [--tsne DIR] [--where CHOICE] DIR [DIR ...]."
    )
    known = {f"{group}s": ", ".join(catalog.names(group)) for group in ("attack", "defense")}
    known |= {"launchers": launchers(), "report": usage}
    assert (
        shown
        == f"bdx: {said.format(tmp=place, devices=devices(), formats=formats(), afterwards=len({*report.METRICS, *comebacks.figures()}) - LISTED, **known)}\n"
    )
    assert code == 2 and "Traceback" not in shown


@pytest.mark.wide
def test_memory_that_runs_out_names_the_setting(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from backdoorbench.attacks import base

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(base, "fit", exhausted)
    assert main([*SMALL, "defense=fst"]) == 2
    assert capsys.readouterr().err == (
        "bdx: memory ran out during 'infect' (CUDA out of memory. Tried to allocate 2.00 GiB.). Lower train.batch_size (now 32), or "
        "choose a narrower model; what was finished before is kept.\n"
    )


@pytest.mark.wide
def test_a_full_disk_loses_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import safetensors.torch

    plain: Callable[..., None] = safetensors.torch.save_file

    def full(tensors: object, path: Path, *others: object) -> None:
        if "runs" in path.parts:  # the disk was large enough for the infection
            raise OSError(28, "No space left on device")
        plain(tensors, path, *others)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert main([*SMALL, "force=true", "defense=ft", "defense.epochs=1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bdx: no space is left on the disk of outputs/runs/") and said.endswith(
        "it goes on where it stopped.\n"
    )
    monkeypatch.setattr(safetensors.torch, "save_file", plain)
    assert main([*SMALL, "force=true", "defense=ft", "defense.epochs=1"]) == 0
    assert "infected model: cached" in capsys.readouterr().out  # the infection was not lost


def test_a_bug_keeps_its_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backdoorbench.pipeline import execute

    monkeypatch.setattr(execute, "execute", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(SMALL)
