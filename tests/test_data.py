"""The data sets: what is read, how it is stored, and what is said about a root that holds something else.

Run alone: pytest tests/test_data.py
"""

import hashlib
import json
import os
import pickle
import runpy
import shutil
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, conf_dir
from backdoorbench.data import cifar10, digits, gtsrb, raw, store, tiny_imagenet
from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.pictures import Picture
from backdoorbench.errors import BdxError, ConfigError, DataError, StorageError
from backdoorbench.pipeline import plan
from backdoorbench.reporting import rows
from backdoorbench.streams import Stream

ENDINGS = ".jpg, .jpeg, .jfif, .png, .ppm, .pgm, .pbm, .pnm, .bmp, .gif, .webp, .avif, .tif, .tiff"
TREE = "train/ and test/ with a folder of images a class"
LAYOUT = f"{TREE}, or another layout of docs/data.md"
REMEDY = "Unpack the data there, or correct dataset.root."


def dataset(name: str, root: Path | str | None = None, **knobs: Any) -> Dataset:
    """The data set as its yaml file describes it, apart from `root` and `knobs`."""
    node = OmegaConf.load(conf_dir() / "dataset" / f"{name}.yaml")
    del node["defaults"]
    node = OmegaConf.merge(node, {"root": None if root is None else str(root), **knobs})
    return build(OmegaConf.to_container(node, resolve=True), "dataset")


def paint(folder: Path, count: int, size: tuple[int, int] = (32, 32), ending: str = ".png") -> None:
    """`count` images 0.png, 1.png, … whose pixels depend on folder and number."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    seed = int(hashlib.sha256(f"{folder.parent.name}/{folder.name}".encode()).hexdigest()[:4], 16)
    for number in range(count):
        pixels = (np.arange(height * width * 3) * 7 + seed + number * 31) % 256
        Image.fromarray(pixels.astype(np.uint8).reshape(height, width, 3)).save(folder / f"{number}{ending}")


def plant(root: Path, classes: Iterable[str], train: int = 3, test: int = 2, tests: str = "test", **how: Any) -> Path:
    """A tree of class folders."""
    for name in classes:
        paint(root / "train" / name, train, **how)
        paint(root / tests / name, test, **how)
    return root


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)


def complaint(kind: type[BdxError], data: Dataset, cache: Path) -> str:
    with pytest.raises(kind) as caught:
        data.load(cache)
    return str(caught.value)


def same(a: Splits, b: Splits) -> bool:
    pairs = [(a.train.images, b.train.images), (a.train.labels, b.train.labels), (a.test.images, b.test.images)]
    return a.digest == b.digest and all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# -- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_always_the_same(cache: Path) -> None:
    """Golden: from the first run of this code, scikit-learn 1.9; the file of the images is from 1998."""
    splits = dataset("digits").load(cache)
    assert splits.train.images.shape == (1437, 3, 32, 32)
    assert splits.train.counts().tolist() == [142, 145, 142, 146, 145, 146, 145, 143, 139, 144]
    assert splits.test.counts().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert splits.digest == "2abe25ce8151fb7d3178a217339e6e60e5d3bd0846e61cd7ba184f633c5a57b1"
    assert splits.train.classes == tuple("0123456789")
    assert (splits.train.images.min(), splits.train.images.max()) == (0, 255)
    assert not cache.exists()


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    assert np.array_equal(digits.read_table(), np.column_stack([raw.data, raw.target]))


def test_digits_repeat_whole_pixels(cache: Path) -> None:
    large, small = dataset("digits", size=64).load(cache), dataset("digits", size=8).load(cache)
    assert torch.equal(large.test.images[:, :, ::8, ::8], small.test.images)
    assert torch.equal(large.test.images[:, :, 7::8, 7::8], small.test.images)
    assert complaint(ConfigError, dataset("digits", size=28), cache) == (
        "dataset.size is 28, but digits repeats each pixel of an 8x8 image a whole number of times. Give a multiple of "
        "8, such as 32."
    )


# -- listing and decoding ---------------------------------------------------------------------------------------------


def test_folder_reads_what_lies_there(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw", ["cat", "ant", "bee"])
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "ant" / "._0.png").write_bytes(b"what macOS leaves behind")
    splits = dataset("folder", root).load(cache)
    assert splits.train.classes == ("ant", "bee", "cat")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(splits.train.images[4], pixels(root / "train" / "bee" / "1.png"))
    assert torch.equal(splits.test.images[5], pixels(root / "test" / "cat" / "1.png"))


def test_folder_takes_val_for_test(tmp_path: Path, cache: Path) -> None:
    splits = dataset("folder", plant(tmp_path / "raw", "ab", test=1, tests="val")).load(cache)
    assert len(splits.test) == 2


def test_grey_and_palette_images_become_rgb(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw", "ab")
    image = Image.open(root / "train" / "a" / "0.png")
    image.convert("L").save(root / "train" / "a" / "0.png")
    image.convert("P").save(root / "train" / "b" / "0.png")
    images = dataset("folder", root).load(cache).train.images
    assert torch.equal(images[0, 0], images[0, 2])


def test_size_resizes(tmp_path: Path, cache: Path) -> None:
    """Against Pillow, called by hand."""
    root = plant(tmp_path / "raw", "ab", size=(48, 30))
    image = Image.open(root / "test" / "a" / "0.png")
    stretched = dataset("folder", root, size=20).load(cache).test.images[0]
    expected = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(stretched.permute(1, 2, 0).numpy(), expected)
    centred = dataset("imagenet12", root, size=20, crop=20, classes=["a", "b"]).load(cache).test.images[0]
    expected = np.asarray(image.resize((32, 20), Image.Resampling.BILINEAR).crop((6, 0, 26, 20)))
    assert np.array_equal(centred.permute(1, 2, 0).numpy(), expected)
    assert len(list((cache / "data").glob("*/meta.json"))) == 2


def test_numbered_folders_count_by_value(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers = [str(number) for number in range(12)]
    splits = dataset("folder", plant(tmp_path / "raw", numbers, train=1, test=1)).load(cache)
    assert list(splits.train.classes) == numbers
    assert splits.train.labels.tolist() == list(range(12))
    assert caplog.messages[0] == (
        "the class folders are numbers without leading zeros; labels follow their value (2 before 10), where loaders "
        "that sort them as text would put 10 before 2 (dataset=folder does with dataset.order=text)"
    )
    caplog.clear()
    padded = [f"{number:02}" for number in range(12)]
    assert list(dataset("folder", plant(tmp_path / "padded", padded)).load(cache).train.classes) == padded
    assert not [message for message in caplog.messages if message.startswith("the class folders")]


def test_read_class_folders(tmp_path: Path) -> None:
    root = plant(tmp_path / "raw", "ba") / "train"
    images, facts = store.read_class_folders(root, ("a", "b"), 32)
    assert facts == {} and images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images.images[3], pixels(root / "b" / "0.png"))
    with pytest.raises(DataError) as caught:
        store.read_class_folders(root, ("a", "c"), 32)
    assert str(caught.value) == f"{root} has 'b', no class of the data set. Name its folders as 'a' and 'c'."
    with pytest.raises(DataError, match="does not exist"):
        store.read_class_folders(tmp_path / "nowhere", ("a", "b"), 32)


# -- the store --------------------------------------------------------------------------------------------------------


def test_a_store_is_opened_not_decoded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset("folder", plant(tmp_path / "raw", "ab"))
    first = data.load(cache)
    monkeypatch.setattr(store, "decode", None)
    second = data.load(cache)
    assert same(first, second)
    meta = json.loads(next((cache / "data").glob("folder-*/meta.json")).read_text())
    assert meta["classes"] == ["a", "b"]
    assert meta["counts"] == {"train": [3, 3], "test": [2, 2]}
    assert meta["digest"] == first.digest == store.digest(first.train, first.test)


def test_writing_to_a_tensor_leaves_the_store(tmp_path: Path, cache: Path) -> None:
    data = dataset("folder", plant(tmp_path / "raw", "ab"))
    data.load(cache).train.images.zero_()
    assert data.load(cache).train.images.any()


def test_the_digest_is_that_of_the_data(tmp_path: Path, cache: Path) -> None:
    here, there = plant(tmp_path / "here", "ab"), tmp_path / "there"
    shutil.copytree(here, there)
    assert dataset("folder", here).load(cache).digest == dataset("folder", there).load(cache).digest
    paint(there / "train" / "a", 4)
    assert dataset("folder", here).load(cache).digest != dataset("folder", there).load(cache).digest


def test_changed_raw_data_are_decoded_anew(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw", "ab")
    data, changed = dataset("folder", root), root / "train" / "a" / "1.png"
    before = data.load(cache)
    shutil.copy(root / "train" / "b" / "1.png", changed)
    os.utime(changed, (1, 1))
    after = data.load(cache)
    assert torch.equal(after.train.images[1], after.train.images[4])
    assert not torch.equal(before.train.images[1], after.train.images[1])
    changed.unlink()
    assert len(data.load(cache).train) == 5


def test_a_killed_decode_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = dataset("folder", plant(tmp_path / "raw", "ab")), []

    def stopped(path: str, background: str) -> Picture:
        seen.append(path)
        if len(seen) > 4:
            raise KeyboardInterrupt
        return Picture(Image.open(path).convert("RGB"))

    with monkeypatch.context() as patched:
        patched.setattr(raw, "open_image", stopped)
        with pytest.raises(KeyboardInterrupt):
            data.load(cache)
    assert not [path for path in (cache / "data").iterdir() if path.is_dir()]
    assert len(data.load(cache).train) == 6


def test_leftovers_are_removed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process that could not clean up (kill -9) leaves beside the store."""
    data = dataset("folder", plant(tmp_path / "raw", "ab"))
    data.load(cache)
    folder = next(path for path in (cache / "data").iterdir() if path.is_dir())
    folder.rename(folder.with_name(f".{folder.name}.0123abcd"))
    data.load(cache)
    assert [path for path in (cache / "data").iterdir() if path.is_dir()] == [folder]


def test_two_at_once_decode_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset("folder", plant(tmp_path / "raw", "ab", train=20))
    decoded, plain = [], raw.open_image
    monkeypatch.setattr(raw, "open_image", lambda path, behind: (decoded.append(path), plain(path, behind))[1])
    found: list[Splits] = []
    workers = [threading.Thread(target=lambda: found.append(data.load(cache))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    assert len(decoded) == 44


def test_a_damaged_store_is_decoded_anew(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = dataset("folder", plant(tmp_path / "raw", "ab"))
    before = data.load(cache)
    images = before.train.images.clone()  # those are mapped
    folder = next(path for path in (cache / "data").iterdir() if path.is_dir())
    with open(folder / "train" / "images.npy", "r+b") as file:
        file.truncate(1000)
    after = data.load(cache)
    assert after.digest == before.digest and torch.equal(after.train.images, images)
    said = f"{folder} is damaged (train/images.npy is not as it was written): set aside as {folder.name}.damaged-"
    assert [line for line in caplog.messages if line.startswith(said)]


def test_a_full_disk_is_noticed_first(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset("folder", plant(tmp_path / "raw", "ab"), size=512)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2_000_000))
    assert complaint(StorageError, data, cache) == (
        f"{cache / 'data'} has 2 MB left; folder decoded to 512 pixels takes 8 MB. Free some space, or give another "
        f"folder with runtime.outputs=FOLDER."
    )


# -- what is wrong with a root ----------------------------------------------------------------------------------------


def test_root_missing_empty_or_null(tmp_path: Path, cache: Path) -> None:
    nowhere, empty, file = tmp_path / "nowhere", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    (empty / ".DS_Store").touch()
    file.touch()
    assert complaint(DataError, dataset("folder"), cache) == (
        f"dataset.root is null. folder needs a folder with {LAYOUT}. Add dataset.root=FOLDER."
    )
    assert complaint(DataError, dataset("folder", nowhere), cache) == (
        f"dataset.root is {nowhere}, which does not exist. folder needs there {LAYOUT}. {REMEDY}"
    )
    assert complaint(DataError, dataset("folder", file), cache) == (
        f"dataset.root is {file}, a file of no kind that is read. folder needs there {LAYOUT}. {REMEDY}"
    )
    assert complaint(DataError, dataset("folder", empty), cache) == (
        f"dataset.root is {empty}, an empty folder. folder needs there {LAYOUT}. {REMEDY}"
    )
    assert not cache.exists()


def test_root_of_another_kind(tmp_path: Path, cache: Path) -> None:
    for name in ("w", "x", "y", "z"):
        (tmp_path / "odd" / name).mkdir(parents=True)
    assert complaint(DataError, dataset("folder", tmp_path / "odd"), cache) == (
        f"dataset.root is {tmp_path / 'odd'}, which holds 'w', 'x', 'y' and 1 more. folder needs there {LAYOUT}. "
        f"{REMEDY}"
    )


def test_root_a_level_off(tmp_path: Path, cache: Path) -> None:
    inner = plant(tmp_path / "outer" / "inner", "ab")
    assert complaint(DataError, dataset("folder", tmp_path / "outer"), cache) == (
        f"dataset.root is {tmp_path / 'outer'}, which holds 'inner'. folder needs there {LAYOUT}. That lies one level "
        f"down: set dataset.root={inner} instead."
    )
    assert complaint(DataError, dataset("folder", inner / "train"), cache) == (
        f"dataset.root is {inner / 'train'}, which holds 'a' and 'b'. folder needs there {LAYOUT}. That lies one level "
        f"up: set dataset.root={inner} instead."
    )


def test_split_missing(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw", "ab")
    (root / "test").rename(root / "aside")
    needs = "folder needs a training and a test split, each with a folder of images a class. Add the missing one, or"
    assert complaint(DataError, dataset("folder", root), cache) == (
        f"{root} has train/ but no test/ or val/. {needs} set dataset.root={root / 'train'}, of whose images "
        f"dataset.test_share are then drawn for testing."
    )
    (root / "aside").rename(root / "test")
    (root / "train").rename(root / "aside")
    assert complaint(DataError, dataset("folder", root), cache) == (
        f"{root} has test/ but no train/. {needs} correct dataset.root."
    )


def test_class_empty_or_unknown(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw", "abcde")
    (root / "train" / "f").mkdir()
    advice = f"(files that end in {ENDINGS}). Add some, or leave that class out altogether."
    assert complaint(DataError, dataset("folder", root), cache) == (f"{root / 'train'} holds no images of 'f' {advice}")
    (root / "train" / "f").rmdir()
    paint(root / "test" / "g", 1)
    assert complaint(DataError, dataset("folder", root), cache) == (
        f"{root / 'test'} has 'g', which {root / 'train'} has not: a class to be tested must be trained. Name the "
        f"class folders of both splits alike."
    )
    for name in "abdeg":
        shutil.rmtree(root / "test" / name)
    assert complaint(DataError, dataset("folder", root), cache) == (
        f"{root / 'test'} holds no images of 'a', 'b', 'd' and 1 more {advice}"
    )


def test_images_not_in_class_folders(tmp_path: Path, cache: Path) -> None:
    paint(tmp_path / "raw" / "train", 3)
    paint(tmp_path / "raw" / "test", 3)
    assert complaint(DataError, dataset("folder", tmp_path / "raw"), cache) == (
        f"{tmp_path / 'raw' / 'train'} has no class folders with images (files that end in {ENDINGS}). Put each class "
        f"in a folder of its own there, or correct dataset.root."
    )


def test_a_class_called_train_is_read_once_the_layout_is_said(tmp_path: Path, cache: Path) -> None:
    for name in ("bus", "car", "train"):
        paint(tmp_path / "raw" / name, 5)
    said = complaint(DataError, dataset("folder", tmp_path / "raw"), cache)
    assert said.endswith(" If train is a class like bus, car, set dataset.layout=classes.")
    splits = dataset("folder", tmp_path / "raw", layout="classes").load(cache)
    assert splits.train.classes == ("bus", "car", "train")


def test_corrupt_images_are_counted_and_named(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw", "ab", train=4)
    broken = [root / "train" / "a" / f"{number}.png" for number in range(4)]
    broken[0].write_bytes(b"")
    assert complaint(DataError, dataset("folder", root), cache) == (
        f"1 of 12 images of folder cannot be decoded: {broken[0]} (cannot identify image file). Copy them again from "
        f"the original, or remove them."
    )
    broken[1].write_bytes(broken[1].read_bytes()[:100])
    said = complaint(DataError, dataset("folder", root), cache)
    assert (
        f"2 of 12 images of folder cannot be decoded: {broken[0]} (cannot identify image file); {broken[1]} (" in said
    )
    for path in broken:
        path.write_bytes(b"no image")
    said = complaint(DataError, dataset("folder", root), cache)
    assert said.startswith("4 of 12 images of folder cannot be decoded: ")
    assert said.endswith(
        f"{broken[2]} (cannot identify image file); …. Copy them again from the original, or remove them."
    )
    assert not [path for path in (cache / "data").iterdir() if path.is_dir()]


# -- subsets ----------------------------------------------------------------------------------------------------------


def test_subsets_keep_shares_and_never_change(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "raw"
    for name, count in (("a", 30), ("b", 12), ("c", 2)):
        paint(root / "train" / name, count, size=(4, 4))
        paint(root / "test" / name, count, size=(4, 4))
    whole = dataset("folder", root, size=4).load(cache)
    part = dataset("folder", root, size=4, train_size=11, test_size=22).load(cache)
    assert part.train.counts().tolist() == [7, 3, 1]
    assert part.test.counts().tolist() == [15, 6, 1]
    again = dataset("folder", root, size=4, train_size=11).load(tmp_path / "elsewhere")
    assert torch.equal(part.train.images, again.train.images)
    assert len(again.test) == 44
    assert len({whole.digest, part.digest, again.digest}) == 3
    assert dataset("folder", root, size=4, train_size=44).load(cache).digest == whole.digest
    full = dataset("folder", root, size=4, train_size=43).load(cache).train
    rows = {image.numpy().tobytes() for image in full.images}
    assert sum(image.numpy().tobytes() in rows for image in part.train.images) == 11


def test_subset_of_digits_is_golden(cache: Path) -> None:
    """From the first run of this code."""
    part = dataset("digits", train_size=100, test_size=10).load(cache)
    assert part.train.counts().tolist() == [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    assert part.test.counts().tolist() == [1] * 10
    assert part.digest == "525cb204530bb0e88eadee000a0eb44935d27ab305550693f8cc0b52714dcd74"


@pytest.mark.parametrize("counts", [[1, 1, 1], [100, 1, 1], [5, 9, 40], [3, 1000, 2, 7]])
def test_stratified_shares(counts: list[int]) -> None:
    """Every size there is: the right sum, one a class at least, none beyond what there is, and within one of its share
    unless that is less than an image."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    total = sum(counts)
    for size in range(len(counts), total + 1, max(1, total // 50)):
        rows = store.stratified(labels, size, Stream(0))
        assert len(rows) == size == len(set(rows.tolist()))
        assert rows.tolist() == sorted(rows.tolist())
        taken = torch.bincount(labels[rows], minlength=len(counts)).tolist()
        assert all(1 <= took <= count for took, count in zip(taken, counts, strict=True))
        if all(size * count >= total for count in counts):
            assert all(abs(took - size * count / total) < 1 for took, count in zip(taken, counts, strict=True))


def test_a_class_without_images_takes_none_of_the_others() -> None:
    """As a drawn test split or a uniform holdout may have: one image fewer was drawn for each such class."""
    labels = torch.tensor([0] * 8 + [2] * 8 + [5] * 4)
    for size in range(3, 21):
        assert len(store.stratified(labels, size, Stream(0))) == size
    assert labels[store.stratified(labels, 10, Stream(0))].bincount().tolist() == [4, 0, 4, 0, 0, 2]


def test_subset_too_large_or_too_small(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw", "abc")
    assert complaint(DataError, dataset("folder", root, train_size=10), cache) == (
        "dataset.train_size is 10, but the train split of folder holds 9 images. Give at most that many, or null for "
        "all."
    )
    assert complaint(DataError, dataset("folder", root, test_size=2), cache) == (
        "dataset.test_size is 2, but folder has 3 classes, and each keeps at least one image. Give at least that many, "
        "or null for all."
    )


# -- CIFAR ------------------------------------------------------------------------------------------------------------

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's archive with ten images a file, whose checksums torchvision is told to expect."""
    from torchvision.datasets import CIFAR10 as Kind

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for number, (name, _) in enumerate([*Kind.train_list, *Kind.test_list]):
        data = ((np.arange(10 * 3072) * 3 + number) % 256).astype(np.uint8).reshape(10, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10)}))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(Kind, "train_list", [[name, sums[name]] for name, _ in Kind.train_list])
    monkeypatch.setattr(Kind, "test_list", [[name, sums[name]] for name, _ in Kind.test_list])
    monkeypatch.setattr(Kind, "meta", {**Kind.meta, "md5": sums["batches.meta"]})
    return folder


def test_cifar10_archive(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_archive(tmp_path / "raw", monkeypatch)
    splits = dataset("cifar10", tmp_path / "raw").load(cache)
    assert splits.train.classes == CIFAR10
    assert (len(splits.train), len(splits.test)) == (50, 10)
    assert splits.train.labels.tolist() == list(range(10)) * 5
    expected = pickle.loads((folder / "data_batch_2").read_bytes())["data"][3].reshape(3, 32, 32)
    assert np.array_equal(splits.train.images[13].numpy(), expected)
    assert dataset("cifar10", tmp_path / "raw", size=16).load(cache).test.images.shape == (10, 3, 16, 16)


def test_cifar10_archive_incomplete(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_archive(tmp_path / "raw", monkeypatch)
    (folder / "data_batch_3").unlink()
    (folder / "test_batch").write_bytes(b"half")
    assert complaint(DataError, dataset("cifar10", tmp_path / "raw"), cache) == (
        f"{folder} is incomplete: 2 of its 7 files are missing or do not match their checksum ('data_batch_3' and "
        f"'test_batch'). Remove that folder, then unpack {cifar10.ARCHIVE.url} again, or leave dataset.root empty and "
        f"let dataset.download=true fetch it."
    )


def test_cifar10_download(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake of torchvision's download: what it leaves in its root is moved in as a whole."""
    from torchvision.datasets import CIFAR10 as Kind

    write_archive(tmp_path / "server", monkeypatch)
    monkeypatch.setattr(Kind, "download", lambda self: shutil.copytree(tmp_path / "server", self.root))
    root = tmp_path / "raw" / "new"
    remedy = (
        f"Unpack {cifar10.ARCHIVE.url} there, or correct dataset.root, or let dataset.download=true fetch it into an "
        f"empty folder."
    )
    assert complaint(DataError, dataset("cifar10", root, download=False), cache) == (
        f"dataset.root is {root}, which does not exist. cifar10 needs there cifar-10-batches-py/, or {TREE}. {remedy}"
    )
    assert len(dataset("cifar10", root).load(cache).train) == 50
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    (root / "cifar-10-batches-py").rename(root / "something")
    assert complaint(DataError, dataset("cifar10", root), cache) == (
        f"dataset.root is {root}, which holds 'something'. cifar10 needs there cifar-10-batches-py/, or {TREE}. "
        f"{remedy}"
    )


def test_cifar10_offline(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10 as Kind

    def offline(self: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(Kind, "download", offline)
    for _ in range(2):
        assert complaint(DataError, dataset("cifar10", tmp_path / "data" / "raw"), cache) == (
            f"{tmp_path / 'data' / 'raw'} is empty, and fetching {cifar10.ARCHIVE.url} failed (<urlopen error no route to host>)"
            f". Connect to the network, or unpack that archive there by hand, or set dataset.root to a folder that "
            f"holds it."
        )
    assert not (tmp_path / "data").exists()  # neither the folders nor a lock stay
    (tmp_path / "raw").mkdir()
    complaint(DataError, dataset("cifar10", tmp_path / "raw"), cache)
    assert list((tmp_path / "raw").iterdir()) == []


def test_cifar_folders(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = plant(tmp_path / "raw", reversed(CIFAR10), train=1, test=1)
    splits = dataset("cifar10", root).load(cache)
    assert splits.train.classes == CIFAR10
    assert torch.equal(splits.train.images[9], pixels(root / "train" / "truck" / "0.png"))
    assert caplog.messages[0] == (
        f"{root} holds 10 training and 10 test images in 10 classes; cifar10 has 50,000 training and 10,000 test "
        f"images in 10 classes. Is the copy complete?"
    )
    assert complaint(DataError, dataset("cifar100", root), cache) == (
        f"{root} has 10 classes; cifar100 has 100. Correct dataset.root, or read this folder with dataset=folder."
    )


# -- GTSRB ------------------------------------------------------------------------------------------------------------


def plant_gtsrb(root: Path, variant: str, answers: str = "GT-final_test.csv") -> Path:
    """Two training images a class, four test images of the classes 7, 42, 0 and 7."""
    base = root / ("GTSRB" if variant == "final_release" else "gtsrb/GTSRB")
    for number in range(43):
        folder = base / gtsrb.TRAINING[variant] / f"{number:05}"
        paint(folder, 2, size=(20 + number, 25), ending=".ppm")
        (folder / f"GT-{number:05}.csv").write_text("Filename;ClassId\n")
    paint(base / "Final_Test" / "Images", 4, ending=".ppm")
    rows = [f"{row}.ppm;32;32;{label}" for row, label in enumerate((7, 42, 0, 7))]
    (base.parent / answers).write_text("\n".join(["Filename;Width;Height;ClassId", *rows]) + "\n")
    return root


@pytest.fixture
def small_gtsrb(monkeypatch: pytest.MonkeyPatch) -> None:
    census = raw.Census(43, 86, 4)
    monkeypatch.setattr(gtsrb, "CENSUS", {"final_release": census, "torchvision": census._replace(train=85)})


@pytest.mark.usefixtures("small_gtsrb")
def test_gtsrb_final_release(tmp_path: Path, cache: Path) -> None:
    root = plant_gtsrb(tmp_path / "raw", "final_release")
    splits = dataset("gtsrb", root).load(cache)
    assert splits.train.classes[:3] == ("00", "01", "02")
    assert splits.train.counts().tolist() == [2] * 43
    assert splits.test.labels.tolist() == [7, 42, 0, 7]
    assert next((cache / "data").glob("gtsrb-final_release-*/meta.json")).is_file()
    beside = root / "GTSRB" / "Final_Test" / "Images" / "GT-final_test.csv"
    (root / "GT-final_test.csv").rename(beside)
    assert dataset("gtsrb", root / "GTSRB").load(cache).digest == splits.digest


@pytest.mark.usefixtures("small_gtsrb")
def test_gtsrb_never_mixes_its_variants(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = plant_gtsrb(tmp_path / "earlier", "torchvision")
    assert complaint(DataError, dataset("gtsrb", earlier), cache) == (
        f"{earlier} holds the torchvision variant of GTSRB (85 training images), but dataset.variant is final_release "
        f"(86). Figures over the two do not compare. Set dataset.variant=torchvision, or dataset.root to a folder with "
        f"the other archive."
    )
    shape = "4 test images in 43 classes"
    assert complaint(DataError, dataset("gtsrb", earlier, variant="torchvision"), cache) == (
        f"{earlier} holds 86 training and {shape}; the torchvision variant of GTSRB has 85 training and {shape}. The "
        f"copy is incomplete, or of another release: unpack the archives again."
    )
    (earlier / "gtsrb" / "GTSRB" / "Training" / "00003" / "1.ppm").unlink()
    assert len(dataset("gtsrb", earlier, variant="torchvision").load(cache).train) == 85
    final = plant_gtsrb(tmp_path / "final", "final_release")
    assert complaint(DataError, dataset("gtsrb", final, variant="torchvision"), cache).startswith(
        f"{final} holds the final_release variant of GTSRB (86 training images), but dataset.variant is torchvision"
    )


@pytest.mark.usefixtures("small_gtsrb")
def test_gtsrb_test_labels(tmp_path: Path, cache: Path) -> None:
    root = plant_gtsrb(tmp_path / "raw", "final_release", answers="GT-final_test.test.csv")
    answers = root / "GT-final_test.csv"
    assert complaint(DataError, dataset("gtsrb", root), cache) == (
        f"{root} has the training images of GTSRB but no GT-final_test.csv (the labels of the test images). Unpack "
        f"GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip there too."
    )
    answers.write_text("Filename;Width\n0.ppm;32\n")
    assert complaint(DataError, dataset("gtsrb", root), cache) == (
        f"{answers} is no table of Filename and ClassId, 0 … 42, separated by semicolons. Unpack "
        f"GTSRB_Final_Test_GT.zip again."
    )
    answers.write_text("Filename;ClassId\n0.ppm;1\n1.ppm;1\n2.ppm;1\n5.ppm;1\n")
    assert complaint(DataError, dataset("gtsrb", root), cache) == (
        f"{answers} and the images in {root / 'GTSRB' / 'Final_Test' / 'Images'} do not match: '3.ppm' and '5.ppm' "
        f"occur in one of them only. Unpack GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip again."
    )
    shutil.rmtree(root / "GTSRB" / "Final_Training" / "Images" / "00042")
    answers.write_text("Filename;ClassId\n0.ppm;1\n1.ppm;1\n2.ppm;1\n3.ppm;1\n")
    assert "84 training and 4 test images in 42 classes" in complaint(DataError, dataset("gtsrb", root), cache)


def write_regions(root: Path) -> None:
    """Tables with a region for each image: training images lose two columns on the left, test images a pixel on each side."""
    base, columns = root / "GTSRB", "Filename;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    for number in range(43):
        lines = [f"{row}.ppm;2;0;{20 + number};25;{number}" for row in range(2)]
        table = base / gtsrb.TRAINING["final_release"] / f"{number:05}" / f"GT-{number:05}.csv"
        table.write_text("\n".join([columns, *lines]))
    rows = [f"{row}.ppm;1;1;31;31;{label}" for row, label in enumerate((7, 42, 0, 7))]
    (root / "GT-final_test.csv").write_text("\n".join([columns, *rows]))


@pytest.mark.usefixtures("small_gtsrb")
def test_gtsrb_regions_are_cut_out(tmp_path: Path, cache: Path) -> None:
    """Against Pillow, called by hand."""
    root = plant_gtsrb(tmp_path / "raw", "final_release")
    image = Image.open(root / "GTSRB" / gtsrb.TRAINING["final_release"] / "00005" / "1.ppm").convert("RGB")
    tested = Image.open(root / "GTSRB" / "Final_Test" / "Images" / "0.ppm").convert("RGB")

    def seen(images: torch.Tensor, row: int) -> np.ndarray:
        return images[row].permute(1, 2, 0).numpy()

    said = complaint(DataError, dataset("gtsrb", root, roi="crop"), cache)
    assert (
        "GT-00000.csv has no region for 0.ppm, which dataset.roi=crop cuts out. Unpack the archives again, or set"
        in said
    )
    write_regions(root)
    table = root / "GT-final_test.csv"
    table.write_text(table.read_text().replace("Roi.X2", "X2"))
    said = complaint(DataError, dataset("gtsrb", root, roi="crop"), cache)
    assert (
        f"{table} is no table of Filename, Roi.X1, Roi.Y1, Roi.X2 and Roi.Y2, which dataset.roi=crop cuts out" in said
    )
    write_regions(root)
    whole = dataset("gtsrb", root).load(cache)
    cropped = dataset("gtsrb", root, roi="crop").load(cache)
    bilinear = Image.Resampling.BILINEAR
    assert np.array_equal(
        seen(cropped.train.images, 11), np.asarray(image.crop((2, 0, 25, 25)).resize((32, 32), bilinear))
    )
    assert np.array_equal(
        seen(cropped.test.images, 0), np.asarray(tested.crop((1, 1, 31, 31)).resize((32, 32), bilinear))
    )
    inset = dataset("gtsrb", root, roi=4).load(cache)
    expected = image.resize((32, 32), bilinear, box=(25 / 8, 25 / 8, 25 - 25 / 8, 25 - 25 / 8))
    assert np.array_equal(seen(inset.train.images, 11), np.asarray(expected))
    assert len({whole.digest, cropped.digest, inset.digest}) == 3
    table.write_text(table.read_text().replace("0.ppm;1;1;31;31", "0.ppm;1;1;31;99"))
    assert "1 of 90 images of gtsrb have a region of interest that is not within the image" in complaint(
        DataError, dataset("gtsrb", root, roi="crop"), cache
    )
    table.write_text(table.read_text().replace("0.ppm;1;1;31;99;7\n", ""))
    assert "occur in one of them only" in complaint(DataError, dataset("gtsrb", root, roi="crop"), cache)
    for roi, words in ((16, "between 1 and 15"), ("all", "expected whole or crop")):
        with pytest.raises(ConfigError, match=words):
            dataset("gtsrb", root, roi=roi)


def test_a_region_tells_runs_apart_and_whole_images_keep_their_keys() -> None:
    given = [compose(["dataset=gtsrb", *more]) for more in ([], ["dataset.roi=crop"], ["dataset.roi=3"])]
    keys = [plan.run_settings(each, "digest") for each in given]
    assert "roi" not in keys[0]["dataset"] and [key["dataset"]["roi"] for key in keys[1:]] == ["crop", 3]
    old = {**given[0], "dataset": {key: value for key, value in given[0]["dataset"].items() if key != "roi"}}
    assert rows.identity(old) == rows.identity(given[0])
    assert len({rows.identity(each) for each in given}) == 3


# -- ImageNet and Tiny ImageNet ---------------------------------------------------------------------------------------


def test_imagenet12_chooses_classes(tmp_path: Path, cache: Path) -> None:
    ids = [f"n{number:08}" for number in (31, 7, *range(100, 113))]
    root = plant(tmp_path / "raw", ids, train=1, test=1, tests="val", size=(40, 30), ending=".JPEG")
    splits = dataset("imagenet12", root, size=32, crop=32).load(cache)
    assert list(splits.train.classes) == sorted(ids)[:12]
    assert splits.train.images.shape == (12, 3, 32, 32)
    chosen = dataset("imagenet12", root, size=32, crop=32, classes=[ids[5], ids[0]]).load(cache)
    assert chosen.train.classes == (ids[5], ids[0])
    assert torch.equal(chosen.test.images[1], splits.test.images[1])
    assert complaint(DataError, dataset("imagenet12", root, classes=["n1", ids[0]]), cache) == (
        f"{root}/train has no folder 'n1', which dataset.classes names; it has '{ids[1]}', '{ids[0]}', '{ids[2]}' and "
        f"12 more. Correct one of the two settings."
    )
    assert complaint(DataError, dataset("imagenet12", root, classes=[ids[0], ids[0]]), cache) == (
        f"dataset.classes is ['{ids[0]}', '{ids[0]}']. Name two classes or more, each once."
    )
    for name in ids[:4]:
        shutil.rmtree(root / "train" / name)
    assert complaint(DataError, dataset("imagenet12", root), cache) == (
        f"{root}/train has 11 class folders; imagenet12 takes the first 12. Add the missing ones, or name yours with "
        f"dataset.classes=[…]."
    )


def test_tiny_imagenet_both_layouts(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "CENSUS", raw.Census(3, 6, 3))
    root = tmp_path / "published"
    for name in ("n03", "n01", "n02"):
        paint(root / "train" / name / "images", 2, size=(64, 64), ending=".JPEG")
        (root / "train" / name / f"{name}_boxes.txt").touch()
    paint(root / "val" / "images", 3, size=(64, 64), ending=".JPEG")
    (root / "test" / "images").mkdir(parents=True)
    table = root / "val" / "val_annotations.txt"
    table.write_text("".join(f"{row}.JPEG\t{name}\t0\t0\t62\t57\n" for row, name in enumerate(("n02", "n03", "n01"))))
    published = dataset("tiny_imagenet", root).load(cache)
    assert published.train.classes == ("n01", "n02", "n03")
    assert published.test.labels.tolist() == [1, 2, 0]
    sorted_ = tmp_path / "sorted"
    shutil.copytree(root / "train", sorted_ / "train")
    for row, name in enumerate(("n02", "n03", "n01")):
        (sorted_ / "val" / name).mkdir(parents=True)
        shutil.copy(root / "val" / "images" / f"{row}.JPEG", sorted_ / "val" / name)
    folders = dataset("tiny_imagenet", sorted_).load(cache)
    assert torch.equal(folders.train.images, published.train.images)
    assert torch.equal(folders.test.images, published.test.images[[2, 0, 1]])
    table.write_text("0.JPEG\tn09\n")
    assert complaint(DataError, dataset("tiny_imagenet", root), cache) == (
        f"{table} says that 0.JPEG shows n09, but val/images/ or train/ lacks it. Unpack the archive again."
    )
    (root / "val").rename(root / "aside")
    assert "has train/ and test/ but no val/" in complaint(DataError, dataset("tiny_imagenet", root), cache)


# -- the script -------------------------------------------------------------------------------------------------------


def test_prepare_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[1] / "scripts" / "prepare_data.py"
    root = plant(tmp_path / "it's here", "ab")
    outputs = f"runtime.outputs={tmp_path / 'outputs'}"

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(script), *arguments, outputs])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    model = ["model=demo", "train=demo"]
    said = run("folder", "--root", str(root), *model)
    assert said.startswith(
        "train         6 images, 3 to 3 a class\ntest          4 images, 2 to 2 a class\n2 classes, "
    )
    assert (tmp_path / "outputs" / "cache" / "data").is_dir()
    with pytest.raises(SystemExit) as stopped:
        run("folder", "--root", str(tmp_path / "nowhere"), *model)
    assert stopped.value.code == 2
    assert "which does not exist" in capsys.readouterr().err
