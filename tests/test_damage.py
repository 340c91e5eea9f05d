"""Files: permissions as the umask says, one byte wrong in any cached file seen and mended, records that are none left out.

pytest tests/test_damage.py -m slow    two hundred damages instead of twelve
"""

import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import stat
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from conftest import QUICK
from PIL import Image
from safetensors.torch import load_file, save_file

from backdoorbench.cli.main import main
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.data.store import open_store
from backdoorbench.errors import StorageError
from backdoorbench.models import checkpoint
from backdoorbench.pipeline import job
from backdoorbench.storage import record, store
from backdoorbench.storage.outputs import Outputs
from backdoorbench.storage.record import Run
from backdoorbench.streams import Stream, seeded
from backdoorbench.sweeps import sweep
from backdoorbench.sweeps.forecast import Ahead
from backdoorbench.training.fit import Snapshots, fit

SEED = 16
TINY = [word for word in QUICK if not word.startswith(("control", "train.epochs"))] + ["train.epochs=1", "force=true"]
WHOLE = (  # infection, clean control, network, verdicts and scores of the control: everything the cache holds but images
    "attack=ssba", *next(row.quick for row in contract.ROWS if row.name == "ssba"), "control=train", "detector=ss",
)  # fmt: skip
ONE = ("control=off", "train.epochs=0", "defense=ft")  # in a second
IMMUTABLE = (".safetensors", ".npy")


@contextmanager
def umask(wanted: int) -> Iterator[None]:
    before = os.umask(wanted)
    try:
        yield
    finally:
        os.umask(before)


def carry_out(outputs: Path, *words: str) -> job.Job:
    return job.carry_out(compose([f"runtime.outputs={outputs}", "runtime.threads=1", *TINY, *words]))


def figures(run: Run) -> list[Any]:
    """All that a run says of its models."""
    return [(s.kind, s.scores, s.control, s.figures, s.beside, s.notes, s.curve, s.key, s.details) for s in run.stages]


def files(outputs: Path) -> list[Path]:
    """Every file that the cache reads again."""
    cache = outputs / "cache"
    places = [cache / name for name in ("infection", "network", "detection", "control")]
    found = sorted(file for place in places for file in place.rglob("*") if file.is_file())
    return [file for file in found if file.suffix != ".lock"]


def flip(file: Path, draw: random.Random) -> int:
    """Changes one byte of a file; where."""
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= draw.randrange(1, 256)
    file.write_bytes(content)
    return place


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """An outputs folder in which the tiny run was carried out, and that run."""
    outputs = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return outputs, carry_out(outputs, *WHOLE).run
    finally:
        torch.set_num_threads(threads)


def place_of(file: Path) -> Path:
    """What is set aside for it: its folder, or the file where it stands alone."""
    return file if file.parent.name == "control" else file.parent


def mends(outputs: Path, before: Run, damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run, repeated, sees the damage, keeps what it set aside, and comes to the same figures."""
    cache, place = Outputs(outputs), place_of(damaged)
    if place.parent.name == "network":  # which only the making of an infection reads
        for folder in cache.infections.glob("ssba-*"):
            shutil.rmtree(folder) if folder.is_dir() else None
    caplog.clear()
    after = carry_out(outputs, *WHOLE, "rerun=true").run
    aside = cache.set_aside()
    assert [path.name.partition(store.ASIDE)[0] for path in aside] == [place.name]
    said = [line for line in caplog.messages if "damaged" in line]
    assert len(said) == 1 and said[0].startswith(f"{place} is damaged (") and said[0].endswith("and made again")
    assert figures(after) == figures(before)
    shutil.rmtree(aside[0]) if aside[0].is_dir() else aside[0].unlink()
    shutil.rmtree(outputs / "runs")


def damages(whole: tuple[Path, Run], count: int, caplog: pytest.LogCaptureFixture) -> None:
    outputs, before = whole
    draw = random.Random(SEED)
    names = [file.relative_to(outputs) for file in files(outputs)]
    tensors = {name: (outputs / name).read_bytes() for name in names if name.suffix in IMMUTABLE}
    order = [name for _ in range(1 + count // len(names)) for name in draw.sample(names, len(names))][:count]
    for name in order:
        place = flip(outputs / name, draw)
        try:
            mends(outputs, before, outputs / name, caplog)
        except AssertionError as error:
            raise AssertionError(f"byte {place} of {name}: {error}") from error
    assert {name: (outputs / name).read_bytes() for name in tensors} == tensors  # made again, byte for byte


@pytest.mark.slow  # test_four_single_bytes_of_images asks as much of other files
def test_four_single_bytes(whole: tuple[Path, Run], caplog: pytest.LogCaptureFixture) -> None:
    damages(whole, 4, caplog)


@pytest.mark.slow
def test_two_hundred_single_bytes(whole: tuple[Path, Run], caplog: pytest.LogCaptureFixture) -> None:
    damages(whole, 200, caplog)


def make_thing(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.bin").write_bytes(bytes(range(256)))
    store.write_json(folder / "b.json", {"a": 1})


def read_thing(folder: Path) -> tuple[bytes, Any]:
    with store.reading(folder):
        return (folder / "inner" / "a.bin").read_bytes(), store.read_json(folder / "b.json")["a"]


def truncate(folder: Path) -> str:
    os.truncate(folder / "inner" / "a.bin", 100)
    return "inner/a.bin is not as it was written"


def zero(folder: Path) -> str:
    (folder / "inner" / "a.bin").write_bytes(bytes(256))
    return "inner/a.bin is not as it was written"


def lose(folder: Path) -> str:
    (folder / "b.json").unlink()
    return "b.json is missing"


def replace_by_folder(folder: Path) -> str:
    (folder / "b.json").unlink()
    (folder / "b.json").mkdir()
    return "b.json is missing"


def other_json(folder: Path) -> str:
    store.write_json(folder / "b.json", [1])
    return "b.json is not as it was written"


def fewer_digests(folder: Path) -> str:
    listed = store.read_json(folder / store.DIGESTS)
    (folder / store.DIGESTS).write_text(json.dumps({**listed, "b.json": None}))
    return "digests.json is not as it was written"


def empty_digests(folder: Path) -> str:
    (folder / store.DIGESTS).write_bytes(b"")
    return "digests.json is not as it was written"


def become_a_file(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.write_text("a file")
    return "it is no folder"


def become_a_dangling_link(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")
    return "it is no folder"


DAMAGES = (
    truncate, zero, lose, replace_by_folder, other_json, fewer_digests, empty_digests, become_a_file, become_a_dangling_link,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_set_aside_and_made_again(
    damage: Callable[[Path], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "cache" / "kind" / "thing"
    expected, found = store.obtain(place, make_thing, read_thing, "")
    assert not found and store.obtain(place, make_thing, read_thing, "") == (expected, True) and not caplog.messages
    reason = damage(place)
    assert store.obtain(place, make_thing, read_thing, "") == (expected, False)
    (aside,) = Outputs(tmp_path).set_aside()
    assert caplog.messages == [f"{place} is damaged ({reason}): set aside as {aside.name}, and made again"]
    assert store.obtain(place, make_thing, read_thing, "") == (expected, True)
    damage(place)  # within the same second
    store.obtain(place, make_thing, read_thing, "")
    assert len(Outputs(tmp_path).set_aside()) == 2


def mend_slowly(place: str, counter: str) -> None:
    def make(folder: Path) -> None:
        with open(counter, "a") as file:
            file.write("made\n")
        time.sleep(0.3)
        make_thing(folder)

    store.obtain(Path(place), make, read_thing, "waiting")


def test_three_processes_mend_it_once(tmp_path: Path) -> None:
    place = tmp_path / "kind" / "thing"
    store.obtain(place, make_thing, read_thing, "")
    truncate(place)
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=mend_slowly, args=(str(place), str(tmp_path / "count"))) for _ in range(3)]
    for job_ in jobs:
        job_.start()
    for job_ in jobs:
        job_.join()
    assert (tmp_path / "count").read_text() == "made\n"
    assert len(list(place.parent.glob(f"*{store.ASIDE}*"))) == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "b.json").write_text(""), "Expecting value: line 1 column 1 (char 0)"),
        (lambda folder: (folder / "b.json").write_text('{"other": 1}'), "it has no 'a'"),
        (lambda folder: (folder / "b.json").unlink(), "[Errno 2] No such file or directory: '{folder}/b.json'"),
    ],
)
def test_a_folder_without_digests_is_read_as_it_is(
    damage: Callable[[Path], object], reason: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those from before there were any; where one cannot be read, it is made again, too."""
    place = tmp_path / "thing"
    store.obtain(place, make_thing, read_thing, "")
    (place / store.DIGESTS).unlink()
    damage(place)
    with caplog.at_level(logging.DEBUG, "backdoorbench"):
        found = store.obtain(place, make_thing, read_thing, "")
    debug = f"{place} is from before there were digests; it is read unchecked"
    assert debug in caplog.messages and found[1] == (reason is None)
    if reason is not None:
        said = f"{place} is damaged ({reason.format(folder=place)}): set aside as "
        assert [entry for entry in caplog.messages if entry.startswith(said)]


def test_a_mistake_of_the_code_sets_nothing_aside(tmp_path: Path) -> None:
    place = tmp_path / "thing"
    store.obtain(place, make_thing, read_thing, "")

    def read(folder: Path) -> None:
        with store.reading(folder):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        store.obtain(place, make_thing, read, "")
    assert place.is_dir() and not list(tmp_path.glob(f"*{store.ASIDE}*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    place = tmp_path / "thing"
    store.obtain(place, make_thing, read_thing, "")
    (place / "b.json").chmod(0)
    with pytest.raises(StorageError, match="may not be read. Ask its owner"):
        store.obtain(place, make_thing, read_thing, "")
    assert place.is_dir()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", '{"a": 1, "b": 2', '{"b": 2, "c": 3}', '{"a": 1, "b": 2, "digest": "0"}', None]
)
def test_a_damaged_answer_is_none(text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "answer.json"
    assert store.read_answer(file, ("a", "b")) is None and not caplog.messages
    store.write_answer(file, {"a": 1, "b": [2.5]})
    assert store.read_answer(file, ("a", "b")) == {"a": 1, "b": [2.5]}
    file.write_text('{"a": 1, "b": 2}')  # from before there were digests
    assert store.read_answer(file, ("a", "b")) == {"a": 1, "b": 2}
    file.unlink()
    file.mkdir() if text is None else file.write_text(text)
    assert store.read_answer(file, ("a", "b")) is None and not file.exists() and "is damaged" in caplog.text


def test_every_byte_of_an_answer_counts(tmp_path: Path) -> None:
    file, draw = tmp_path / "answer.json", random.Random(SEED)
    store.write_answer(file, {"a": 0.25, "b": [1, 2]})
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
        assert store.read_answer(file, ("a", "b")) is None, place


def test_a_byte_of_a_snapshot_costs_its_epochs_and_no_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch writes checksums into its files, and compares none."""
    rows = torch.arange(40 * 3 * 64).remainder(256).to(torch.uint8).view(40, 3, 8, 8)
    train, recipe = (
        ImageSet(rows, torch.arange(40) % 2, ("a", "b")),
        build({**compose([])["train"], "epochs": 2}, "train"),
    )

    def trained(snapshots: Snapshots | None) -> torch.Tensor:
        with seeded(Stream(0)):
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        fit(model, train, recipe, Stream(0), snapshots=snapshots)
        return next(model.parameters()).detach()

    file = tmp_path / "snapshot.pt"
    expected = trained(Snapshots(file, 0.0))
    weights = torch.load(file, weights_only=True)["model"]["1.weight"].contiguous().numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(weights) + 100] ^= 1
    file.write_bytes(content)
    assert torch.equal(trained(Snapshots(file, 1e9)), expected)
    assert [
        line for line in caplog.messages if "is not as it was written); training starts from the first epoch" in line
    ]


@pytest.mark.wide
def test_verbs_that_make_nothing_say_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"runtime.outputs={tmp_path}", *TINY, *ONE]
    job.carry_out(compose(words))
    (infection,) = Outputs(tmp_path).infections.glob("*/infection.json")
    infection.unlink()
    code, _, err = bdx(capsys, "preview", *words, "--output", str(tmp_path / "a.png"))
    assert code == 2 and err == (
        f"bdx: {infection.parent} is damaged (infection.json is missing). A run that needs it sets it aside and makes it again.\n"
    )


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A decoded data set of eight pictures."""
    for split, label, number in itertools.product(("train", "test"), "ab", range(2)):
        (tmp_path / "raw" / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 99, 0)).save(tmp_path / "raw" / split / label / f"{number}.png")
    resolved = compose(["dataset=folder", f"dataset.root={tmp_path / 'raw'}", "dataset.size=8", "dataset.crop=null"])
    build(resolved["dataset"], "dataset").load(tmp_path)
    (folder,) = (place for place in (tmp_path / "data").iterdir() if place.is_dir())
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files whose bytes were compared."""
    seen: list[str] = []
    plain = store.file_digest
    monkeypatch.setattr(store, "file_digest", lambda path: (seen.append(path.name), plain(path))[1])
    return seen


def rot(file: Path) -> None:
    """A byte changes, and the disk says nothing of it."""
    stat_before = file.stat()
    flip(file, random.Random(SEED))
    os.utime(file, ns=(stat_before.st_atime_ns, stat_before.st_mtime_ns))


def test_images_are_compared_once_a_day(images: Path, hashed: list[str]) -> None:
    open_store(images)
    assert not hashed  # a moment ago they were
    os.utime(images / store.CHECKED, (time.time() - store.DAY - 1,) * 2)
    open_store(images)
    assert sorted(hashed) == ["images.npy", "images.npy", "labels.npy", "labels.npy", "meta.json"]
    open_store(images)
    assert len(hashed) == 5
    os.utime(images / store.CHECKED, (time.time() + store.DAY,) * 2)  # a clock that was set back
    open_store(images)
    assert len(hashed) == 10


@pytest.mark.parametrize("name", ["train/images.npy", "test/images.npy", "train/labels.npy", "meta.json"])
def test_a_byte_of_the_images_is_seen_at_once(images: Path, name: str) -> None:
    rot(images / name)  # of the same size and mtime
    with pytest.raises(store.Damaged, match=f"{name} is not as it was written"):
        open_store(images)


def mends_images(images: Path, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """A byte of any file of a decoded data set is seen, what held it set aside, and the images decoded again are the same."""
    root = images.parents[1]
    resolved = compose(["dataset=folder", f"dataset.root={root / 'raw'}", "dataset.size=8", "dataset.crop=null"])
    dataset = build(resolved["dataset"], "dataset")
    before, draw = dataset.load(root), random.Random(SEED)
    names = [
        file.relative_to(images) for file in sorted(images.rglob("*")) if file.is_file() and file.name != store.CHECKED
    ]
    for name in (draw.choice(names) for _ in range(count)):
        place = flip(images / name, draw)
        caplog.clear()
        after = dataset.load(root)
        said = [line for line in caplog.messages if line.startswith(f"{images} is damaged (")]
        (aside,) = images.parent.glob(f"*{store.ASIDE}*")
        assert len(said) == 1 and said[0].endswith("and made again"), f"byte {place} of {name}"
        assert after.digest == before.digest and torch.equal(after.train.images, before.train.images), name
        shutil.rmtree(aside)


def test_four_single_bytes_of_images(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    mends_images(images, 4, caplog)


@pytest.mark.slow
def test_two_hundred_single_bytes_of_images(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    mends_images(images, 200, caplog)


def test_what_the_disk_does_by_itself_is_seen_within_a_day(images: Path) -> None:
    rot(images / "train" / "images.npy")
    names = [store.DIGESTS, *store.read_json(images / store.DIGESTS)]
    (images / store.CHECKED).write_text(store._state(images, names) or "")  # as if no time had moved
    open_store(images)
    os.utime(images / store.CHECKED, (time.time() - store.DAY - 1,) * 2)
    with pytest.raises(store.Damaged, match="train/images.npy is not as it was written"):
        open_store(images)


def test_a_damaged_note_of_the_last_look_is_no_damage(images: Path, hashed: list[str]) -> None:
    flip(images / store.CHECKED, random.Random(SEED))
    open_store(images)
    assert len(hashed) == 5
    open_store(images)
    assert len(hashed) == 5


# ---- records --------------------------------------------------------------------------------------------------------


def wrong(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, **changes}


def wrong_stage(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, "stages": [{**stage, **changes} for stage in content["stages"]]}


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {  # what is written in place of a record
    "empty": lambda content: "",
    "half": lambda content: json.dumps(content)[:300],
    "binary": lambda content: b"\xff\xfe\x00",
    "deep": lambda content: "[" * 100_000,
    "a list": lambda content: [content],
    "a number": lambda content: 3,
    "null": lambda content: None,
    "of something else": lambda content: {"name": "left-pad", "version": "1.3.0"},
    "no settings": wrong(config={}),
    "settings of another kind": wrong(config=[]),
    "no seed": lambda content: wrong(config={**content["config"], "seed": None})(content),
    "a group that is a text": lambda content: wrong(config={**content["config"], "attack": "badnets"})(content),
    "a group without a name": lambda content: wrong(config={**content["config"], "model": {}})(content),
    "another status": wrong(status="finished"),
    "a status of another kind": wrong(status=["done"]),
    "stages of another kind": wrong(stages={"infect": 1}),
    "a stage that is a text": wrong(stages=["infect"]),
    "a stage without a kind": lambda content: {**content, "stages": [{"name": "x"}]},
    "scores that are texts": wrong_stage(scores={"ca": "0.9", "asr": 1.0, "ra": 0.0, "n_clean": 1, "n_triggered": 1}),
    "scores of something else": wrong_stage(scores={"wrong": 1}),
    "scores in a list": wrong_stage(scores=[0.9]),
    "seconds that are texts": wrong_stage(seconds={"infect": "long"}),
    "notes in a list": wrong_stage(notes=[]),
    "a share that is a text": wrong_stage(details={"largest_share": "much"}),
    "a chance that is none": wrong_stage(details={"by_chance": 2.0}),
    "a curve of numbers": wrong_stage(curve=[0.1, 0.2]),
    "a curve without epochs": wrong_stage(curve=[{"asr": 1.0}]),
    "reasons that are none": wrong_stage(reasons=[None]),
    "a rate that is a text": lambda content: wrong(
        config={**content["config"], "attack": {**content["config"]["attack"], "poison_rate": "some"}}
    )(content),
    "no gates": lambda content: wrong(config={**content["config"], "gates": None})(content),
    "settings without gates": lambda content: wrong(
        config={name: value for name, value in content["config"].items() if name != "gates"}
    )(content),
    "a gate that is a text": lambda content: wrong(config={**content["config"], "gates": {"constant_share": "most"}})(
        content
    ),
    "a gate that is null": lambda content: wrong(config={**content["config"], "gates": {"constant_share": None}})(
        content
    ),
    "a detector that is null": lambda content: wrong(config={**content["config"], "detector": None})(content),
    "a detector without a name": lambda content: wrong(config={**content["config"], "detector": {"name": {}}})(content),
    "CA that is null": wrong_stage(scores={"ca": None, "asr": 1.0, "ra": 0.0, "n_clean": 1, "n_triggered": 1}),
    "seconds that are null": wrong_stage(seconds={"infect": None}),
    "a device that is null": wrong(environment={"device": None}),
    "running since a word": wrong(status="running", started="yesterday"),
    "more than a record has": wrong(more=1),
    "a folder": lambda content: Path,
}


def spoil(folder: Path, kind: str) -> None:
    file = folder / record.FILE
    content = RECORDS[kind](json.loads(file.read_text()))
    file.unlink()
    if content is Path:
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with one run that is done."""
    outputs = tmp_path_factory.mktemp("done")
    carry_out(outputs, *ONE)
    return outputs


@pytest.fixture
def among(done: Path, tmp_path: Path) -> Path:
    """That folder, with a second record for each kind of wrong one; its runs sort before the good one."""
    outputs = tmp_path / "outputs"
    shutil.copytree(done, outputs)
    (good,) = (outputs / "runs").iterdir()
    for number, kind in enumerate(RECORDS):
        bad = good.with_name(f"20000101-{number:06}_digits-badnets-none_{number:012x}")
        shutil.copytree(good, bad)
        spoil(bad, kind)
    return outputs


def bdx(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def first_of(outputs: Path) -> str:
    return f"bdx: {len(RECORDS)} records are left out; the first: {outputs}/runs/20000101-000000_digits-badnets-none_000000000000/record.json is "


@pytest.mark.wide
@pytest.mark.parametrize("form", ["terminal", "csv", "runs-csv", "md", "latex"])
def test_reports_leave_wrong_records_out(
    form: str, among: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = bdx(capsys, "report", str(among), "--format", form)
    assert code == 0 and err.startswith(first_of(among)) and err.count("\n") == 1
    plain = bdx(capsys, "report", str(done), "--format", form)
    assert out == plain[1].replace(str(done), str(among)) and not plain[2]


def test_plots_runs_and_the_cache_leave_wrong_records_out(
    among: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = bdx(capsys, "plot", "heatmap", str(among), "--output", str(tmp_path / "a.svg"))
    assert code == 0 and err.startswith(first_of(among)) and err.count("\n") == 1
    code, out, err = bdx(capsys, "runs", str(among))
    assert code == 0 and err.startswith(first_of(among)) and err.count("\n") == 1
    assert f"  {len(RECORDS) + 1} runs: 1 done, {len(RECORDS)} damaged" in out
    code, out, err = bdx(capsys, "cache", "--outputs", str(among))
    assert code == 0 and err.startswith(first_of(among)) and "  1 infection, " in out


def test_only_wrong_records(among: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(max((among / "runs").iterdir()))
    code, _, err = bdx(capsys, "report", str(among))
    assert code == 2 and err.startswith(first_of(among)) and "no record.json lies below" in err


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["empty", "a list", "of something else", "scores that are texts", "a folder"])
def test_the_same_run_goes_on_beside_a_wrong_record(
    kind: str, done: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(done, outputs)
    (good,) = (outputs / "runs").iterdir()
    spoiled = good.with_name(good.name.replace("2", "1", 1))
    good.rename(spoiled)
    spoil(spoiled, kind)
    again = carry_out(outputs, *ONE)
    assert not again.repeated and again.run.infection.cached
    left_out = [line for line in caplog.messages if "left out" in line]
    assert len(left_out) == 1 and left_out[0].startswith(f"a record is left out: {spoiled}/record.json is no record")
    assert carry_out(outputs, *ONE).repeated


@pytest.mark.wide
def test_a_sweep_is_planned_beside_wrong_records(among: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"runtime.outputs={among}", *TINY, "control=off", "train.epochs=0", "defense=none,ft"]
    code, out, _ = bdx(capsys, "plan", *words)
    assert code == 0 and "done" in out


@pytest.mark.parametrize("text", ["", "[]", "3", '{"overrides": 1}', '{"overrides": [], "status": "well"}', None])
def test_a_sweep_with_damaged_files(text: str | None, tmp_path: Path) -> None:
    swept = sweep.Sweep()
    swept.folder = swept.place = tmp_path
    swept.runs = [Ahead(number, (f"seed={number}",), {}) for number in range(2)]
    sweep.leave(tmp_path / "0", ["seed=0"], "done", record=Path("somewhere"))
    (tmp_path / "1").mkdir()
    (tmp_path / "old").mkdir()
    for file in (tmp_path / "1" / "job.json", tmp_path / "old" / "job.json", tmp_path / "sweep.json"):
        file.mkdir() if text is None else file.write_text(text)
    left = swept.jobs()
    assert [one.error for one in left.values()] == [None, sweep.DAMAGED] and left[1].overrides == ("seed=1",)
    assert swept.rerun_commands([left[1]]) == ["bdx -m seed=1"]
    swept.runs = None  # a search
    assert [one.status for one in swept.jobs().values()] == ["done", "failed"]


# ---- permissions ----------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(
    ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_permissions_follow_the_umask(mask: int, file: int, folder: int, tmp_path: Path) -> None:
    with umask(mask):
        done = carry_out(tmp_path / "outputs", "train.epochs=0", "control=train", "detector=ss", "defense=ft")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "outputs").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {folder}
    assert {path.name: oct(mode) for path, mode in modes.items() if path.is_file() and mode != file} == {}
    assert (done.folder / "purified.safetensors").stat().st_nlink == 1


def test_weights_of_two_names_are_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with umask(0o002):
        done = carry_out(tmp_path, "train.epochs=0", "control=off", "defense=none")
        weights = done.folder / "purified.safetensors"
        (infected,) = (tmp_path / "cache" / "infection").glob("*/model.safetensors")
        assert weights.samefile(infected) and stat.S_IMODE(infected.stat().st_mode) == 0o444
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        copied = carry_out(tmp_path, "train.epochs=0", "control=off", "defense=none", "rerun=true").folder
    copy = copied / "purified.safetensors"
    assert copy.stat().st_nlink == 1 and stat.S_IMODE(copy.stat().st_mode) == 0o664
    assert copy.read_bytes() == infected.read_bytes()


def test_weights_that_may_not_be_made_read_only_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another account."""
    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(Path, "chmod", lambda *_: (_ for _ in ()).throw(PermissionError("not yours")))
    assert not store.link(tmp_path / "a", tmp_path / "b") and not (tmp_path / "b").exists()


@pytest.mark.wide
def test_weights_that_were_overwritten_by_their_other_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = carry_out(tmp_path, "control=off", "defense=none")
    weights = first.folder / "purified.safetensors"
    other = {name: value + 1 for name, value in load_file(weights).items()}
    save_file(other, tmp_path / "other.safetensors")
    with weights.open("r+b") as file:  # as root may, whatever the mode
        file.write((tmp_path / "other.safetensors").read_bytes())
    again = carry_out(tmp_path, "control=off", "defense=none", "rerun=true")
    assert figures(again.run) == figures(first.run) and "model.safetensors is not as it was written" in caplog.text


def test_a_file_of_tensors_is_the_librarys(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(2, dtype=torch.uint8)}
    store.write_tensors(tmp_path / "ours", tensors, {"bdx": "{}"})
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "theirs", {"bdx": "{}"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    (tmp_path / "ours").write_bytes(b"12345")
    with pytest.raises(ValueError, match="ours: Error while deserializing header"):
        store.read_tensors(tmp_path / "ours")


def test_weights_of_another_network_are_no_weights(tmp_path: Path) -> None:
    checkpoint.save(torch.nn.Linear(2, 3), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: Error\(s\) in loading state_dict for Linear"):
        checkpoint.restore(torch.nn.Linear(3, 3), tmp_path / "model.safetensors")


def as_somebody(user: int, group: int, work: Callable[[], None]) -> None:
    """Does the work in a child process of another account, with umask 002; its modules are those that are loaded here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads in a process that forks: the child uses none
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            os.umask(0o002)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.wide
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
def test_two_accounts_on_one_outputs_folder(done: Path) -> None:
    """With umask 002 the second reads what the first trained, and both write beside it; what is damaged either mends."""
    first, second, shared = 7101, 7102, 7001
    words = ("train.epochs=0", "control=train", "detector=ss", "seed=1")
    home = Path(tempfile.mkdtemp(prefix="bdx-shared-"))
    home.chmod(0o2775)
    os.chown(home, first, shared)
    outputs = home / "outputs"
    carry_out(done, *words, "defense=none")  # loads what the children need, from where they may not

    def run(defense: str) -> None:
        ran = carry_out(outputs, *words, f"defense={defense}", "rerun=true")
        said = {
            "cached": [stage.cached for stage in ran.run.stages],
            "links": (ran.folder / "purified.safetensors").stat().st_nlink,
        }
        store.write_json(home / f"{os.getuid()}.json", said)

    def ran(user: int, defense: str) -> tuple[Any, Any]:
        as_somebody(user, shared, lambda: run(defense))
        said = store.read_json(home / f"{user}.json")
        return said["cached"][:2], said["links"]

    try:
        assert ran(first, "none") == ([False, False], 2)
        assert ran(second, "none") == ([True, True], 1)  # what is read-only to him he copies
        assert ran(first, "none") == ([True, True], 3)
        infections = Outputs(outputs).infections
        assert {path.stat().st_uid for path in infections.rglob("*")} == {first}
        (weights,) = infections.glob("badnets-*/model.safetensors")
        flip(weights, random.Random(SEED))
        assert ran(second, "none") == ([False, True], 2)
        assert {path.stat().st_uid for path in infections.glob("badnets-*")} == {first, second}
        assert ran(first, "none") == ([True, True], 1)
    finally:
        shutil.rmtree(home)
