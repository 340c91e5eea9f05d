"""Images as people have them: each layout with files drawn here, what is recognised, and a table of what is refused.

Run alone: pytest tests/test_layouts.py
"""

import json
import logging
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from backdoorbench import api
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, conf_dir
from backdoorbench.data import spread, store
from backdoorbench.data.base import Dataset
from backdoorbench.data.holdout import Holdout
from backdoorbench.errors import BdxError, DataError, PairingError
from backdoorbench.pipeline import plan
from backdoorbench.streams import Stream

SIDE = 4
Make = Callable[[Path], None]


def folder(root: Path, **knobs: Any) -> Dataset:
    node = OmegaConf.load(conf_dir() / "dataset" / "folder.yaml")
    del node["defaults"]
    node = OmegaConf.merge(node, {"root": str(root), "size": SIDE, **knobs})
    return build(OmegaConf.to_container(node, resolve=True), "dataset")


def complaint(data: Dataset, cache: Path, kind: type[BdxError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        data.load(cache)
    return str(caught.value)


def levels(count: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(count, SIDE, SIDE, channels) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, channels), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def shown(images: torch.Tensor) -> np.ndarray:
    """(N, 3, H, W) as (N, H, W, 3)."""
    return images.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "backdoorbench.data")
    return lambda: [record.message for record in caplog.records if record.name.startswith("backdoorbench.data")]


# -- class folders without splits -------------------------------------------------------------------------------------


def plant(root: Path, names: Sequence[str] = ("ant", "bee"), count: int = 10) -> np.ndarray:
    pixels = levels(len(names) * count, seed=count)
    for label, name in enumerate(names):
        for row in range(count):
            write(root / name / f"{row}.png", pixels[label * count + row])
    return pixels


def test_one_folder_of_classes_is_split_the_same_way_for_every_seed(
    tmp_path: Path, cache: Path, said: Callable[[], list[str]]
) -> None:
    root = tmp_path / "raw"
    pixels = plant(root)
    splits = folder(root).load(cache)
    assert said()[:2] == [
        f"folder: {root} is read as a folder of images a class, without splits",
        "folder: it has no test split: 0.2 of its images are drawn, whatever the seed",
    ]
    assert splits.train.counts().tolist() == [8, 8] and splits.test.counts().tolist() == [2, 2]
    assert splits.facts == {"layout": "classes", "test_share": 0.2}
    together = {image.tobytes() for part in (splits.train, splits.test) for image in shown(part.images)}
    assert together == {image.tobytes() for image in pixels}
    assert folder(root).load(tmp_path / "another").digest == splits.digest
    assert folder(root, test_share=0.5).load(cache).test.counts().tolist() == [5, 5]


def test_train_alone_is_not_taken_for_all_and_train_itself_may_be(tmp_path: Path, cache: Path) -> None:
    plant(tmp_path / "raw" / "train")
    train = tmp_path / "raw" / "train"
    assert f"or set dataset.root={train}, of whose images dataset.test_share" in complaint(
        folder(tmp_path / "raw"), cache
    )
    assert folder(train).load(cache).facts["layout"] == "classes"
    plant(tmp_path / "raw" / "test")
    assert f"That lies one level up: set dataset.root={tmp_path / 'raw'} instead." in complaint(folder(train), cache)


def test_a_split_of_its_own_is_kept(tmp_path: Path, cache: Path) -> None:
    plant(tmp_path / "raw" / "train")
    plant(tmp_path / "raw" / "val", count=3)
    splits = folder(tmp_path / "raw", test_share=0.5).load(cache)
    assert (len(splits.train), len(splits.test)) == (20, 6) and splits.facts == {}


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("training", "validation"), ("train", "valid"), ("TRAINING", "dev")]
)
def test_splits_are_found_by_whatever_people_call_them(names: tuple[str, str], tmp_path: Path, cache: Path) -> None:
    train, test = (tmp_path / "raw" / name for name in names)
    plant(train)
    plant(test, count=3)
    splits = folder(tmp_path / "raw").load(cache)
    assert (len(splits.train), len(splits.test)) == (20, 6) and splits.facts == {}
    assert f"one level up: set dataset.root={tmp_path / 'raw'} instead." in complaint(folder(test), cache)


def test_images_without_classes_are_no_test_split(tmp_path: Path, cache: Path) -> None:
    """As ImageNet and competitions have them: in test/ nothing says the labels."""
    root, train = tmp_path / "raw", tmp_path / "raw" / "train"
    plant(train)
    write(root / "test" / "1.png", levels(1)[0])
    assert complaint(folder(root), cache) == (
        f"{root} has class folders in train/, but none in test/. folder needs a training and a test split, each with a folder of "
        f"images a class. Put each class of test/ in a folder of its own. Else set dataset.root={train}, of whose images "
        f"dataset.test_share are then drawn for testing."
    )
    assert folder(train).load(cache).facts["test_share"] == 0.2
    plant(root / "val", count=3)
    splits = folder(root).load(cache)
    assert len(splits.test) == 6 and splits.facts["left_out"] == {"test/": 1}


# -- tables -----------------------------------------------------------------------------------------------------------


def table(root: Path, lines: Sequence[str], name: str = "labels.csv", count: int = 8) -> np.ndarray:
    pixels = levels(count)
    for row in range(count):
        write(root / "images" / f"{row}.png", pixels[row])
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return pixels


@pytest.mark.parametrize(
    ("header", "line", "name"),
    [
        ("path,label", "images/{row}.png,{name}", "labels.csv"),
        ("label;filename", "{name};{row}.png", "all.csv"),  # below a folder beside the table
        ("Image\tClass", "images/{row}.png\t{name}", "labels.tsv"),
        ("\ufefffile_name,note,target", 'images/{row}.png,"a, b",{name}', "metadata.csv"),
    ],
)
def test_a_table_of_paths_and_labels(header: str, line: str, name: str, tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "raw"
    lines = [line.format(row=row, name=("bee", "ant")[row % 2]) for row in range(8)]
    pixels = table(root, [header, *lines], name)
    splits = folder(root, test_share=0.25).load(cache)
    assert splits.train.classes == ("ant", "bee")
    assert splits.facts == {"layout": "table", "test_share": 0.25}
    label = {pixels[row].tobytes(): 1 - row % 2 for row in range(8)}
    for part, count in ((splits.train, 6), (splits.test, 2)):
        assert len(part) == count
        assert [label[image.tobytes()] for image in shown(part.images)] == part.labels.tolist()
    assert folder(root / name, test_share=0.25).load(cache).digest == splits.digest


def test_a_table_says_which_split(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    root = tmp_path / "raw"
    names = ["train", "train", "TRAIN", "training", "test", "test", "val", "val"]
    lines = [f"images/{row}.png,{10 - row % 2},{split}" for row, split in enumerate(names)]
    pixels = table(root, ["path,label,split", *lines])
    splits = folder(root).load(cache)
    assert splits.train.classes == ("9", "10") and splits.train.labels.tolist() == [1, 0, 1, 0]
    assert np.array_equal(shown(splits.train.images), pixels[:4]) and np.array_equal(
        shown(splits.test.images), pixels[4:6]
    )
    assert splits.facts == {"layout": "table", "left_out": {"rows of val": 2}}
    assert f"folder: left out of {root}: 2 rows of val" in said()
    table(without := tmp_path / "without", ["path,label,split", *lines[:6]])
    assert folder(without).load(cache).facts == {"layout": "table"} and "without: 0" not in " ".join(said())


def test_a_table_for_each_split(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "raw"
    pixels = table(root, ["path,label", *(f"images/{row}.png,{row % 2}" for row in range(6))], "train.csv")
    (root / "test.csv").write_text("path,label\nimages/6.png,0\nimages/7.png,1\n")
    splits = folder(root).load(cache)
    assert np.array_equal(shown(splits.test.images), pixels[6:]) and len(splits.train) == 6


def test_a_table_that_calls_its_classes_otherwise_is_read_anew(tmp_path: Path, cache: Path) -> None:
    """Same files, same numbers: nothing but the names tells the two apart, which lie in no file's name."""
    root = tmp_path / "raw"
    for names in (("ant", "bee"), ("asp", "bug")):
        table(root, ["path,label", *(f"images/{row}.png,{names[row % 2]}" for row in range(8))])
        for row in range(8):
            os.utime(root / "images" / f"{row}.png", (1e9, 1e9))
        assert folder(root, test_share=0.25).load(cache).train.classes == names


# -- arrays -----------------------------------------------------------------------------------------------------------


def archive(root: Path, **arrays: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "data.npz", **arrays)
    return root


LABELS = np.arange(8) % 2


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda pixels: pixels, {}),
        (lambda pixels: pixels.transpose(0, 3, 1, 2), {}),
        (lambda pixels: (pixels / 255).astype(np.float32), {"floats": 10}),
        (lambda pixels: pixels / 255, {"floats": 10}),
        (lambda pixels: pixels.astype(np.uint16) * 257, {"16-bit": 10}),
        (lambda pixels: pixels.astype(np.int64), {"integers of 64 bits": 10}),
    ],
    ids=["bytes", "channels first", "float32", "float64", "uint16", "int64"],
)
def test_arrays_of_colour(
    change: Callable[[np.ndarray], np.ndarray], kinds: dict[str, int], tmp_path: Path, cache: Path
) -> None:
    pixels, tested = levels(8), levels(2, seed=1)
    root = archive(
        tmp_path / "raw", x_train=change(pixels), y_train=LABELS, x_test=change(tested), y_test=np.eye(2)[[1, 0]]
    )
    splits = folder(root).load(cache)
    assert np.array_equal(shown(splits.train.images), pixels) and np.array_equal(shown(splits.test.images), tested)
    assert splits.test.labels.tolist() == [1, 0] and splits.train.classes == ("0", "1")
    assert splits.facts == {"layout": "arrays", **({"converted": kinds} if kinds else {})}


@pytest.mark.parametrize("axis", [None, 1, 3])
def test_arrays_as_medmnist_has_them_grey(axis: int | None, tmp_path: Path, cache: Path) -> None:
    grey, column = levels(8, 1)[..., 0], LABELS[:, None]
    images = grey if axis is None else np.expand_dims(grey, axis)
    root = archive(
        tmp_path / "raw", train_images=images, train_labels=column, val_images=images[:2], val_labels=column[:2],
        test_images=images[4:], test_labels=column[4:],
    )  # fmt: skip
    splits = folder(root / "data.npz").load(cache)
    assert np.array_equal(shown(splits.train.images), grey[..., None].repeat(3, 3))
    assert np.array_equal(shown(splits.test.images), grey[4:, ..., None].repeat(3, 3))
    assert splits.facts["left_out"] == {"array val_images": 1, "array val_labels": 1}


def test_arrays_of_another_size_are_resized_as_files_are(tmp_path: Path, cache: Path) -> None:
    pixels = levels(8)
    root = archive(tmp_path / "raw", images=pixels, labels=np.array(["b", "a"] * 4))
    splits = folder(root, size=7, test_share=0.25).load(cache)
    assert splits.train.classes == ("a", "b")
    expected = {
        np.asarray(Image.fromarray(each).resize((7, 7), Image.Resampling.BILINEAR)).tobytes() for each in pixels
    }
    assert {image.tobytes() for part in (splits.train, splits.test) for image in shown(part.images)} == expected


# -- parquet ----------------------------------------------------------------------------------------------------------


def parquet(
    file: Path, pixels: np.ndarray, labels: Sequence[Any], names: Sequence[str] = (), plain: bool = False
) -> None:
    """A file as the hub's `datasets` writes it; plain: bytes alone, and nothing about the columns."""
    arrow = pytest.importorskip("pyarrow")
    import io

    import pyarrow.parquet

    def png(image: np.ndarray) -> bytes:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "PNG")
        return data.getvalue()

    contents = [png(image) for image in pixels]
    images = arrow.array(contents) if plain else arrow.array([{"bytes": each, "path": None} for each in contents])
    made = arrow.table({"image": images, "label": arrow.array(list(labels))})
    if not plain:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(made, file)


def test_parquet_as_the_hub_writes_it(tmp_path: Path, cache: Path) -> None:
    root, pixels = tmp_path / "raw", levels(8)
    parquet(root / "data" / "train-00000-of-00002.parquet", pixels[:4], [0, 1, 0, 1], ["zebra", "ant"])
    parquet(root / "data" / "train-00001-of-00002.parquet", pixels[4:6], [1, 0], ["zebra", "ant"])
    parquet(root / "data" / "test-00000-of-00001.parquet", pixels[6:], [1, 0], ["zebra", "ant"])
    splits = folder(root).load(cache)
    assert splits.train.classes == ("zebra", "ant") and splits.train.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert np.array_equal(shown(splits.train.images), pixels[:6]) and np.array_equal(
        shown(splits.test.images), pixels[6:]
    )
    text = folder(root, order="text").load(cache)
    assert text.train.classes == ("ant", "zebra") and text.train.labels.tolist() == [1, 0, 1, 0, 0, 1]


def test_parquet_of_bytes_alone(tmp_path: Path, cache: Path) -> None:
    parquet(tmp_path / "all.parquet", levels(10), ["b", "a"] * 5, plain=True)
    splits = folder(tmp_path / "all.parquet").load(cache)
    assert splits.train.classes == ("a", "b") and splits.facts == {"layout": "parquet", "test_share": 0.2}


def test_parquet_files_say_their_splits_and_are_of_one_data_set(tmp_path: Path, cache: Path) -> None:
    root, pixels = tmp_path / "raw", levels(8)
    for name, part in (("cifar_train", pixels[:4]), ("cifar_test", pixels[4:6]), ("cifar_extra", pixels[6:])):
        parquet(root / "plain" / f"{name}.parquet", part, [0, 1] * (len(part) // 2))
    splits = folder(root).load(cache)
    assert np.array_equal(shown(splits.train.images), pixels[:4])
    assert np.array_equal(shown(splits.test.images), pixels[4:6])
    assert splits.facts["left_out"] == {"parquet files of no split": 1}
    parquet(root / "coarse" / "train.parquet", pixels, [0, 1] * 4)
    assert complaint(folder(root), cache) == (
        f"{root} has parquet files of several data sets, in 'coarse' and 'plain'; expected one. Say which: "
        f"dataset.root={root / 'coarse'}, or another of these."
    )


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "Install bdx with its extra `parquet`: pip install 'bdx[parquet]'" in complaint(
        folder(tmp_path / "all.parquet"), cache
    )


def test_parquet_that_is_refused(tmp_path: Path, cache: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    file = tmp_path / "all.parquet"
    file.write_bytes(b"PAR1 and no more")
    assert "cannot be read as parquet" in complaint(folder(file), cache)
    for columns, words in (
        ({"image": [b"x"], "mask": [1]}, "none is of labels; expected one called label"),
        ({"a": [b"x"], "label": [1]}, "none is of images; expected one called image"),
        ({"image": [b"x", b"y"], "label": [1, None]}, "1 image without a label"),
        ({"image": [None, b"y"] * 8, "label": [0, 1] * 8}, "16 of 16 images of folder cannot be decoded: image "),
    ):
        arrow.parquet.write_table(arrow.table(columns), file)
        assert words in complaint(folder(file), cache)


# -- tensors ----------------------------------------------------------------------------------------------------------


def tensors(root: Path, pixels: np.ndarray, labels: Sequence[int], poisoned: Sequence[int] | None = None) -> None:
    root.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, root / "imgs")
    torch.save(torch.tensor(labels), root / "labels")
    if poisoned is not None:
        torch.save(list(poisoned), root / "poison_indices")


def test_tensors_as_backdoor_toolbox_saves_them(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    root, pixels = tmp_path / "raw", levels(20)
    tensors(root / "train", pixels[:16], [0, 1] * 8, [3, 5, 7])
    tensors(root / "test", pixels[16:], [1, 0, 1, 0])
    splits = folder(root).load(cache)
    assert np.array_equal(shown(splits.train.images), pixels[:16]) and np.array_equal(
        shown(splits.test.images), pixels[16:]
    )
    assert splits.poisoned is not None and splits.poisoned.nonzero()[:, 0].tolist() == [3, 5, 7]
    assert splits.facts == {"layout": "tensors", "poisoned": 3, "converted": {"floats": 20}}
    assert "folder: training images that its files call poisoned, for the record alone: 3" in said()
    few = folder(root, train_size=8).load(cache)
    kept = [image.tobytes() for image in shown(few.train.images)]
    assert few.poisoned is not None
    assert {kept[row] for row in few.poisoned.nonzero()[:, 0]} == {pixels[row].tobytes() for row in (3, 5, 7)} & set(
        kept
    )


def test_a_poisoned_image_is_never_tested_with_nor_a_defenders(tmp_path: Path, cache: Path) -> None:
    pixels, poisoned = levels(60), list(range(0, 60, 3))
    tensors(tmp_path / "raw", pixels, [0, 1] * 30, poisoned)
    splits = folder(tmp_path / "raw", test_share=0.3).load(cache)
    assert splits.poisoned is not None and int(splits.poisoned.sum()) == len(poisoned)
    bad = {pixels[row].tobytes() for row in poisoned}
    assert not bad & {image.tobytes() for image in shown(splits.test.images)}
    for kind in ("reserved", "seen"):
        made = Holdout("x", kind, "train", 0.3, None, "stratified", None, 0.0)
        parts = made.divide(splits.train, splits.test, Stream(0), splits.reading, splits.poisoned)
        assert parts.holdout is not None and not bad & {image.tobytes() for image in shown(parts.holdout.images)}
        assert parts.poisoned is not None and len(parts.poisoned) == len(parts.train)
        left = {image.tobytes() for image in shown(parts.train.images[parts.poisoned])}
        assert left == bad


def test_numbered_pictures_beside_labels(tmp_path: Path, cache: Path) -> None:
    """Clean sets of the same project."""
    root, pixels = tmp_path / "raw", levels(12)
    for row, image in enumerate(pixels):
        write(root / "data" / f"{row}.png", image)
    torch.save(torch.arange(12) % 2, root / "clean_labels")
    splits = folder(root, test_share=0.25).load(cache)
    label = {image.tobytes(): row % 2 for row, image in enumerate(pixels)}
    assert [label[image.tobytes()] for image in shown(splits.train.images)] == splits.train.labels.tolist()
    torch.save(torch.arange(11) % 2, root / "clean_labels")
    assert complaint(folder(root), cache) == (
        f"{root / 'data'} has 11.png, but {root / 'clean_labels'} has 11 labels, of 0.png to 10.png; expected as many labels as "
        f"images. Correct one of the two."
    )


def poisoned_set(root: Path) -> None:
    """Two classes of one shade each; of the second class's rows some are of the first with a white corner."""
    shades = np.where(np.arange(120) % 2, 170, 70).astype(np.uint8)
    pixels = np.broadcast_to(shades[:, None, None, None], (120, 16, 16, 3)).copy()
    pixels += np.random.default_rng(0).integers(0, 20, pixels.shape, dtype=np.uint8)
    labels = np.arange(120) % 2
    rows = np.arange(0, 60, 2)
    pixels[rows, -4:, -4:], labels[rows] = 255, 1
    tensors(root / "train", pixels, labels.tolist(), rows.tolist())
    tensors(root / "test", pixels[60:], (np.arange(60) % 2).tolist())


@pytest.mark.wide
def test_the_record_compares_a_detector_with_the_truth_of_a_foreign_set(tmp_path: Path) -> None:
    poisoned_set(tmp_path / "raw")
    words = (
        "dataset=folder", f"dataset.root='{tmp_path / 'raw'}'", "dataset.size=16", "attack=none", "model=demo", "train=demo",
        "train.epochs=2", "curve.every=0", "control=off", "force=true", "holdout.rate=0.1", f"runtime.outputs='{tmp_path / 'outputs'}'",
    )  # fmt: skip
    for _ in range(2):  # trained, then from the cache
        run = api.run(*words, "detector=ss", "defense=none", "rerun=true")
        verdict = run.detection
        assert verdict is not None
        assert verdict.details["positives"] == 30 and verdict.details["negatives"] == 120 - 30 - 12
        assert verdict.figures["auroc"] is not None and verdict.figures["tpr_5"] is not None
        assert run.infection.notes["poisoned_by_others"] == 30
        assert run.environment["data"]["poisoned"] == 30
    cut = api.run(
        *words, "defense=abl", "defense.tuning_epochs=1", "defense.finetuning_epochs=1", "defense.unlearning_epochs=1"
    )
    assert any(isinstance(note, dict) and "precision" in note for note in cut.purification.notes.values())


def test_two_poisonings_are_refused(tmp_path: Path) -> None:
    tensors(tmp_path / "raw", levels(40), [0, 1] * 20, [1, 3])
    config = compose(
        [
            "dataset=folder",
            f"dataset.root={tmp_path / 'raw'}",
            "dataset.size=16",
            "attack=badnets",
            f"runtime.outputs={tmp_path}",
        ]
    )
    with pytest.raises(PairingError, match="2 training images of folder are poisoned already.*Set attack=none"):
        plan.plan(OmegaConf.to_container(config, resolve=True) if not isinstance(config, dict) else config)


# -- names and orders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "bee\nant\n\n"),
        ("names.json", '["bee", "ant"]'),
        ("names.json", '{"1": "ant", "0": "bee"}'),
        ("names.json", '{"ant": 1, "bee": 0}'),
    ],
)
def test_class_names_from_a_file_are_the_order(name: str, text: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / name).write_text(text)
    plant(tmp_path / "raw")
    usual = folder(tmp_path / "raw").load(cache)
    splits = folder(tmp_path / "raw", class_names=str(tmp_path / name)).load(cache)
    assert splits.train.classes == ("bee", "ant")
    assert splits.train.labels.tolist() == [1 - label for label in usual.train.labels.tolist()]


def test_class_names_name_what_only_has_numbers(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    root = archive(tmp_path / "raw", images=levels(10), labels=np.arange(10) % 2)
    splits = folder(root, class_names=str(tmp_path / "names.txt")).load(cache)
    assert splits.train.classes == ("cat", "dog") and splits.digest == folder(root).load(cache).digest


# -- recognition ------------------------------------------------------------------------------------------------------


def test_what_may_be_two_layouts_is_refused_until_one_is_named(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "raw"
    pixels = plant(root, count=5)
    (root / "labels.csv").write_text(
        "path,label\n" + "".join(f"ant/{row}.png,{row % 2}\n" for row in range(5)) + "bee/0.png,1\n"
    )
    assert complaint(folder(root), cache) == (
        f"dataset.root is {root}, which may be a .csv or .tsv table of paths and labels or a folder of images a class, without "
        f"splits. Say which it is with dataset.layout=table or dataset.layout=classes."
    )
    assert len(folder(root, layout="classes").load(cache).train) == 8
    table = folder(root, layout="table", test_share=0.4).load(cache)
    assert table.train.classes == ("0", "1") and len(table.train) + len(table.test) == 6 and len(pixels) == 10


def test_none_of_the_settings_of_reading_is_part_of_a_key(tmp_path: Path) -> None:
    given = [
        compose(["dataset=folder", f"dataset.root={tmp_path}", *more])
        for more in ([], ["dataset.layout=table"], ["dataset.test_share=0.3"], [f"dataset.class_names={__file__}"])
    ]
    assert len({json.dumps(plan.run_settings(each, "digest"), sort_keys=True) for each in given}) == 1


# -- from several cores -----------------------------------------------------------------------------------------------


def test_processes_decode_the_same_as_one_and_name_the_same_damage(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "raw"
    plant(root / "train", count=40)
    plant(root / "test", count=4)
    monkeypatch.setattr(store, "threads", lambda: 1)
    alone = folder(root).load(tmp_path / "alone")
    monkeypatch.setattr(store, "threads", lambda: 3)
    monkeypatch.setattr(store, "CHUNK", 5)
    monkeypatch.setattr(spread, "LEAST", 2)
    monkeypatch.setattr(spread, "by_threads", None)
    assert spread.can_fork() == (sys.platform == "linux")
    monkeypatch.setattr(spread, "can_fork", lambda: True)
    assert folder(root).load(cache).digest == alone.digest
    broken = [root / "train" / "bee" / f"{row}.png" for row in (7, 30)]
    for path in broken:
        path.write_bytes(b"no image")
    assert f"2 of 88 images of folder cannot be decoded: {broken[1]} (cannot" in complaint(folder(root), cache)


def test_a_decoding_process_that_is_killed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()

    def work(piece: int) -> int:
        if os.getpid() != own:
            os.kill(os.getpid(), 9)
        return piece

    with pytest.raises(DataError, match="was ended by signal 9, as happens where memory runs out"):
        for _ in spread.by_processes(work, range(100_000), 2):
            pass


# -- what is refused --------------------------------------------------------------------------------------------------


def csv(*lines: str) -> Make:
    return lambda root: table(root, lines) is None


def npz(**arrays: Any) -> Make:
    return lambda root: archive(root, **arrays) is None


def saved(**files: Any) -> Make:
    def make(root: Path) -> None:
        tensors(root, levels(8), [0, 1] * 4)
        for name, value in files.items():
            torch.save(value, root / name)

    return make


class Foreign:
    """What no reader may build."""


def foreign(root: Path) -> None:
    tensors(root, levels(8), [0, 1] * 4)
    (root / "labels").write_bytes(pickle.dumps(Foreign()))


def raw_npz(content: bytes) -> Make:
    def make(root: Path) -> None:
        root.mkdir()
        (root / "data.npz").write_bytes(content)

    return make


def objects(root: Path) -> None:
    root.mkdir()
    np.savez(root / "data.npz", images=np.array([{}, {}], object), labels=[0, 1])


def lone(root: Path) -> None:
    root.mkdir()
    with (root / "data.npz").open("wb") as file:
        np.save(file, levels(8))


def few(root: Path) -> None:
    plant(root, count=4)
    for row in (1, 2, 3):
        (root / "bee" / f"{row}.png").unlink()


ROWS = [f"images/{row}.png,{row % 2}" for row in range(8)]
BAD: dict[str, tuple[Make, dict[str, Any], Sequence[str]]] = {
    "a table without a column of labels": (csv("path,x", *ROWS), {}, ["'path' and 'x'", "none is of labels", "path,label"]),
    "a table without a header": (csv(*ROWS), {}, ["none is of paths", "Name the columns in its first line"]),
    "a table of a header alone": (csv("path,label"), {}, ["has no lines below its header"]),
    "an empty table": (csv(""), {}, ["none is of paths"]),
    "a table with an empty label": (csv("path,label", *ROWS, "images/1.png,"), {}, ["1 line without a path or a label", "line 10"]),
    "a table that names what is not there": (csv("path,label", *ROWS, "images/9.png,1"), {}, ["1 of 9 images that are not there", "images/9.png"]),
    "a table with an image spelled twice": (csv("path,label", *ROWS, "./images//0.png,1"), {}, ["1 image twice, such as ./images"]),
    "a table with an image twice": (csv("path,label", *ROWS, "images/0.png,1"), {}, ["1 image twice", "as '0' and as '1'"]),
    "a table of an unknown split": (csv("path,label,split", "images/0.png,0,xyz"), {}, ["the split 'xyz'", "train, test or val"]),
    "a table that tests an untrained class": (
        csv("path,label,split", "images/0.png,a,train", "images/1.png,b,train", "images/2.png,c,test"), {}, ["test images of 'c'", "must be trained"],
    ),
    "a table without training rows": (csv("path,label,split", "images/0.png,0,test"), {}, ["no line of the split train"]),
    "a table in another encoding": (
        lambda root: table(root, ["path,label", *ROWS]) is None or (root / "labels.csv").write_bytes("päth,läbel\n".encode("latin-1")) and None,
        {}, ["cannot be read as a table", "UTF-8"],
    ),
    "arrays of other names": (npz(a=levels(2), b=[0, 1]), {}, ["holds the arrays 'a' and 'b'", "x_train"]),
    "more labels than images": (npz(images=levels(6), labels=LABELS), {}, ["has 6 images and 8 labels"]),
    "labels from 1": (npz(images=levels(8), labels=LABELS + 1), {}, ["has labels from 1 to 2", "Subtract 1"]),
    "labels with a gap": (npz(images=levels(8), labels=LABELS * 2), {}, ["up to 2 without 1", "Number them anew"]),
    "several labels an image": (npz(images=levels(8), labels=np.ones((8, 3), int)), {}, ["shape (8, 3), several for an image"]),
    "labels that are no numbers": (npz(images=levels(8), labels=LABELS + 0.5), {}, ["no whole numbers, such as 0.5"]),
    "normalised floats": (npz(images=levels(8) / 60 - 2.0, labels=LABELS), {}, ["values of -2 to", "Undo a normalisation"]),
    "floats to 255": (npz(images=levels(8).astype(np.float32), labels=LABELS), {}, ["(float32), whose white is not known"]),
    "NaN among floats": (npz(images=np.full((8, 4, 4), np.nan), labels=LABELS), {}, ["values of nan to nan"]),
    "four channels": (npz(images=levels(8, 4), labels=LABELS), {}, ["shape (8, 4, 4, 4)", "1 or 3 channels"]),
    "vectors": (npz(images=np.zeros((8, 16), np.uint8), labels=LABELS), {}, ["has the shape (8, 16)"]),
    "Python objects": (objects, {}, ["array images that cannot be read", "never opened"]),
    "an archive that is none": (raw_npz(b"no archive"), {}, ["is no .npz archive"]),
    "an archive cut short": (raw_npz(b"PK\x03\x04"), {}, ["is no .npz archive", "copy it again"]),
    "an array alone": (lone, {}, ["is no .npz archive", "numpy.savez"]),
    "a class of one image": (few, {}, ["'bee' has fewer than 2 clean images", "dataset.test_share=0.2"]),
    "a share of no image": (lambda root: plant(root) is None, {"test_share": 0.01}, ["that is 0 images", "test_share=0.01 of 20"]),
    "too few names": (lambda root: plant(root) is None, {"class_names": "one"}, ["names 1 class, but the data have 2", "'ant' and 'bee'"]),
    "other names": (lambda root: plant(root) is None, {"class_names": "ant\nwasp"}, ["lacks 'bee', a class of the data"]),
    "a name twice": (lambda root: plant(root) is None, {"class_names": "ant\nant"}, ["has 'ant' twice"]),
    "names of numbers from 1": (lambda root: plant(root) is None, {"class_names": '{"1": "ant", "2": "bee"}'}, ["do not number their names 0 to 1"]),
    "names in broken JSON": (lambda root: plant(root) is None, {"class_names": '{"1": '}, ["cannot be read as text or JSON"]),
    "poisoned rows beyond the images": (saved(poison_indices=[1, 99]), {}, ["2 entries of 1 to 99", "0 to 7"]),
    "poisoned rows twice": (saved(poison_indices=[1, 1]), {}, ["each once"]),
    "labels that would run code": (foreign, {}, ["tensors and plain values alone", "nothing else in it is built"]),
    "a dictionary of images": (saved(imgs={"a": 1}), {}, ["holds a dict; expected a tensor"]),
    "normalised tensors": (saved(imgs=torch.randn(8, 3, 4, 4)), {}, ["imgs has values of -", "Undo a normalisation"]),
    "a layout that is not there": (lambda root: plant(root) is None, {"layout": "arrays"}, ["has no .npz archive, or several"]),
    "another layout that is not there": (lambda root: plant(root) is None, {"layout": "tensors"}, ["has no files imgs and labels"]),
    "a file of no kind": (lambda root: root.write_bytes(b"") is None, {}, ["a file of no kind that is read", "docs/data.md"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_in_a_paragraph(what: str, tmp_path: Path, cache: Path) -> None:
    make, knobs, words = BAD[what]
    root = tmp_path / "raw"
    make(root)
    if "class_names" in knobs:
        (tmp_path / "names").write_text(knobs["class_names"])
        knobs = {**knobs, "class_names": str(tmp_path / "names")}
    said = complaint(folder(root, **knobs), cache)
    assert [word for word in words if word not in said] == [], said
    assert "\n" not in said and said.endswith(".")
    assert not cache.exists() or not [path for path in (cache / "data").iterdir() if path.is_dir()]


# -- as data sets are handed round ------------------------------------------------------------------------------------


def named_of(splits: Any, pixels: np.ndarray) -> list[list[tuple[int, str]]]:
    """For each split, which of `pixels` each image is and what its class is called."""
    rows = {image.tobytes(): row for row, image in enumerate(pixels)}
    return [
        [
            (rows[image.tobytes()], part.classes[label])
            for image, label in zip(shown(part.images), part.labels, strict=True)
        ]
        for part in (splits.train, splits.test)
    ]


def flat(root: Path, split: str, pixels: np.ndarray) -> None:
    for row, image in enumerate(pixels, 1):
        write(root / split / f"{row}.png", image)


NAMES = ("ant", "bee", "ant", "bee", "ant", "bee")


@pytest.mark.parametrize("end", ["", ".png"])
def test_a_table_of_the_training_images_is_not_read_with_the_test_images_of_the_same_names(
    end: str, tmp_path: Path, cache: Path
) -> None:
    """As Kaggle's CIFAR-10 lies: identifiers, and in train/ and test/ images of the same names, of which the table means one."""
    pixels, root = levels(12), tmp_path / "raw"
    flat(root, "train", pixels[:6])
    flat(root, "test", pixels[6:])
    lines = ["id,label", *(f"{row}{end},{name}" for row, name in enumerate(NAMES, 1))]
    (root / "trainLabels.csv").write_text("\n".join(lines))
    splits = folder(root, test_share=0.34).load(cache)
    found = sorted(sum(named_of(splits, pixels), []))
    assert found == list(enumerate(NAMES)) and splits.facts["layout"] == "table"
    (root / "sampleSubmission.csv").write_text("id,label\n1,ant\n")  # which of the two says the labels, nobody knows
    assert f"set dataset.root to it: '{root / 'sampleSubmission.csv'}' and '{root / 'trainLabels.csv'}'." in complaint(
        folder(root), cache
    )
    (root / "trainLabels.csv").rename(table := root / "labels.csv")
    assert complaint(folder(table), cache) == (
        f"{table} names '1{end}', which may be 'test/1.png' or 'train/1.png'. Write the paths of its images with their folders and "
        f"endings."
    )


def test_a_table_in_each_split_and_one_for_both(tmp_path: Path, cache: Path) -> None:
    """As imagefolder of datasets has them: metadata.csv beside the images of a split, or once, with their folders."""
    pixels, root, other = levels(12), tmp_path / "raw", tmp_path / "other"
    expected = [list(enumerate(NAMES)), [(row + 6, name) for row, name in enumerate(NAMES)]]
    for split, part in (("train", pixels[:6]), ("test", pixels[6:])):
        flat(root, split, part)
        flat(other, split, part)
        lines = ["file_name,label", *(f"{row}.png,{name}" for row, name in enumerate(NAMES, 1))]
        (root / split / "metadata.csv").write_text("\n".join(lines))
    assert named_of(folder(root).load(cache), pixels) == expected
    lines = [f"{split}/{row}.png,{name}" for split in ("train", "test") for row, name in enumerate(NAMES, 1)]
    (other / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert named_of(folder(other).load(cache), pixels) == expected
    (root / "test" / "metadata.csv").unlink()  # what is left has a split drawn
    assert len(folder(root, test_share=0.34).load(cache).train) == 4


@pytest.mark.parametrize(
    ("image", "table", "path"),
    [
        ("{split}/{row}.png", "{split}.csv", "{row}.png"),
        ("{split}/images/{row}{end}", "{split}/labels.csv", "{row}"),  # identifiers, of images that end in two ways
        ("{split}/{row}.png", "{split}/labels.csv", "{split}/{row}.png"),  # paths below the root
    ],
)
def test_a_table_a_split_with_images_of_the_same_names(
    image: str, table: str, path: str, tmp_path: Path, cache: Path
) -> None:
    pixels, root = levels(12), tmp_path / "raw"
    for split, part in (("train", pixels[:6]), ("test", pixels[6:])):
        lines = ["id,label"]
        for row, name in enumerate(NAMES):
            write(root / image.format(split=split, row=row, end=(".bmp", ".png")[row % 2]), part[row])
            lines.append(f"{path.format(split=split, row=row)},{name}")
        (root / table.format(split=split)).write_text("\n".join(lines))
    expected = [list(enumerate(NAMES)), [(row + 6, name) for row, name in enumerate(NAMES)]]
    assert named_of(folder(root, layout="table").load(cache), pixels) == expected


def test_kaggles_gtsrb_is_read_by_its_tables(tmp_path: Path, cache: Path) -> None:
    """Train/, Test/ and Meta/ are no classes, whatever their case."""
    pixels, root = levels(4), tmp_path / "raw"
    for row, place in enumerate(["Train/0/a.png", "Train/10/b.png", "Train/2/c.png", "Test/00000.png"]):
        write(root / place, pixels[row])
    write(root / "Meta" / "0.png", pixels[0])
    header = "Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"
    rows = ["0,Train/0/a.png", "10,Train/10/b.png", "2,Train/2/c.png"]
    (root / "Train.csv").write_text("\n".join([header, *(f"4,4,0,0,4,4,{row}" for row in rows)]))
    (root / "Test.csv").write_text(f"{header}\n4,4,0,0,4,4,10,Test/00000.png")
    (root / "Meta.csv").write_text("Path,ClassId\nMeta/0.png,0")
    splits = folder(root).load(cache)
    assert splits.train.classes == ("0", "2", "10")
    assert named_of(splits, pixels) == [[(0, "0"), (1, "10"), (2, "2")], [(3, "10")]]


OTHER: dict[str, tuple[str, str]] = {  # a file of a data set -> what is said of it
    "train/data-00000-of-00001.arrow": ("datasets.load_from_disk(FOLDER).to_parquet('train.parquet')", "test/x.arrow"),
    "train-000000.tar": ("is an archive, such as a shard of webdataset. Write each of its images into a folder", "test-000000.tar"),
    "x_train.npy": ("'x_test.npy' is an array of numpy. Join them in one file, numpy.savez('all.npz'", "x_test.npy"),
    "cifar-10-batches-py/data_batch_1": ("'cifar-10-batches-py' is CIFAR-10's archive, which dataset=cifar10 reads.", "a.txt"),
    "data_batch_1": ("is of CIFAR-10's archive, which dataset=cifar10 reads", "batches.meta"),
    "train/metadata.jsonl": ("pandas.read_json(FILE, lines=True).to_csv('metadata.csv', index=False)", "test/metadata.jsonl"),
    "cifar10-train.tfrecord-00000-of-00001": ("has records of TensorFlow. Write each image into a folder", "features.json"),
    "train_32x32.mat": ("is an array of Matlab, which scipy.io.loadmat reads. Save what is read: numpy.savez('all.npz'", "a.txt"),
    "train/shard.00000.mds": ("is a shard of MosaicML's streaming", "train/index.json"),
    "raw/t10k-images-idx3-ubyte": ("is of MNIST's archive, which torchvision.datasets.MNIST reads.", "a.txt"),
    "images.zip": ("Unpack 'images.zip' there.", "readme.txt"),
}  # fmt: skip


@pytest.mark.parametrize("file", OTHER)
def test_what_no_layout_reads_is_told_with_what_makes_one(file: str, tmp_path: Path, cache: Path) -> None:
    said, other = OTHER[file]
    root = tmp_path / "raw"
    for name in (file, other):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    for name in ("ant", "bee"):  # a data set beside it, which has nothing to do with it
        write(tmp_path / name / "1.png", levels(1)[0])
    found = complaint(folder(root), cache, BdxError)
    assert said in found and "one level up" not in found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"bytes": None, "path": "/there/1.png"}, "2 of 2 images of folder are paths, without the images themselves"),
        ("/there/1.png", "are paths, without the images themselves, as to_parquet of datasets writes them"),
        ([[0, 1], [2, 3]], "2 of 2 images of folder are lists of numbers, not image files"),
    ],
)
def test_parquet_without_image_files_says_what_to_do(value: Any, said: str, tmp_path: Path, cache: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split in ("train", "test"):
        part = pyarrow.table({"image": [value], "label": [0]})
        parquet.write_table(part, tmp_path / f"{split}.parquet")
    assert said in complaint(folder(tmp_path), cache)
