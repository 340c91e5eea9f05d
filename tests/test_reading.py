"""Files of weights as people have them: each kind is read without running it, matched by names or by order, and written back.

pytest tests/test_reading.py
"""

import builtins
import bz2
import contextlib
import importlib
import io
import logging
import lzma
import pickle
import random
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.errors import ModelError
from backdoorbench.models import checkpoint, formats, reading
from backdoorbench.models.base import Classifier
from backdoorbench.models.matching import Fit
from backdoorbench.models.unpickling import Foreign

Weights = dict[str, Tensor]


def classifier(name: str = "demo", classes: int = 5, size: int = 8, seed: int = 0, **changes: Any) -> Classifier:
    """A small network of ours whose statistics are no round numbers either."""
    torch.manual_seed(seed)
    net = build(option("model", name) | {"width": 4} | changes, "model").net(classes, size)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return Classifier(net, size, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval()


def bare(model: Classifier) -> Weights:
    return model.net.state_dict()


def load(model: Classifier, file: Path) -> Fit:
    return checkpoint.load_given(model, str(file), "tiny")


def same(a: Classifier, b: Classifier) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


# --- every usual wrapping ---------------------------------------------------------------------------------------------


def zipped(content: Any, file: Path) -> None:
    torch.save(content, file)


def legacy(content: Any, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def headed(head: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{head}{name}": value for name, value in weights.items()}


def backdoorbench_result(weights: Weights) -> Any:
    """As the field's widest benchmark writes its results: weights, facts, and data sets as objects of its own."""
    return {
        "model_name": "preactresnet18", "num_classes": 5, "model": OrderedDict(weights), "data_path": "./data/cifar10",
        "img_size": [32, 32, 3], "clean_data": "cifar10",
        "bd_train": {"bd_data_container": Stranger(), "original_index": np.arange(4), "poison": np.float64(0.1)},
        "bd_test": None,
    }  # fmt: skip


class Stranger:
    """Some class of somebody else's."""

    def __init__(self) -> None:
        self.table = {"a": 1}


WRAPPED: dict[str, tuple[Callable[[Weights], Any], str]] = {  # what is saved -> the state that is taken
    "the weights alone": (dict, ""),
    "state_dict beside epoch, best_prec and optimizer": (
        lambda w: {"epoch": 3, "state_dict": w, "best_prec": torch.tensor(85.6), "optimizer": {"state": {0: {"m": torch.zeros(3)}}}},
        "state_dict",
    ),
    "net beside acc": (lambda w: {"net": w, "acc": 84.5, "epoch": 9}, "net"),
    "net beside a numpy scalar": (lambda w: {"net": w, "acc": np.float64(84.5), "best": np.array([1, 2])}, "net"),
    "netC": (lambda w: {"netC": w, "netG": {"a.weight": torch.zeros(3, 3)}, "epoch_current": 3}, "netC"),
    "model_state_dict": (lambda w: {"model_state_dict": w, "loss": 0.1}, "model_state_dict"),
    "model_raw": (lambda w: {"model_raw": w}, "model_raw"),
    "classifier": (lambda w: {"classifier": w}, "classifier"),
    "an unusual key": (lambda w: {"student": w, "teacher": {"weight": torch.zeros(3, 3)}}, "student"),
    "two wrappers": (lambda w: {"checkpoint": {"state_dict": w}}, "checkpoint.state_dict"),
    "a tuple with the accuracy": (lambda w: (w, 0.93), "0"),
    "the average alone": (lambda w: {"state_dict_ema": w, "state_dict": {"x": torch.zeros(1)}}, "state_dict_ema"),
    "Lightning": (
        lambda w: {
            "epoch": 2, "pytorch-lightning_version": "2.4", "hparams_name": "kwargs", "hyper_parameters": Namespace(lr=0.1),
            "state_dict": headed("model.")(w) | {"criterion.weight": torch.ones(5)},
        },
        "state_dict",
    ),
    "Lightning, of a compiled network": (lambda w: {"state_dict": headed("net._orig_mod.")(w)}, "state_dict"),
    "two heads": (headed("backbone.net."), ""),
    "a Namespace": (lambda w: {"args": Namespace(lr=0.1, arch="demo"), "model": w}, "model"),
    "a benchmark's result": (backdoorbench_result, "model"),
}  # fmt: skip


@pytest.mark.wide
@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_file_is_read_and_its_state_is_chosen_by_fit(
    kind: str, write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    wrap, taken = WRAPPED[kind]
    theirs, ours, file = classifier(seed=1), classifier(), tmp_path / "given.pth.tar"
    write(wrap(bare(theirs)), file)
    fit = load(ours, file)
    assert same(ours, theirs) and fit.state.name == taken and fit.by == "names"
    assert fit.found.format == ("legacy" if write is legacy else "torch zip")


def test_plain_values_beside_the_weights_are_told(tmp_path: Path) -> None:
    file = tmp_path / "given.pt"
    content = {
        "net": bare(classifier()),
        "acc": np.float32(0.5),
        "epoch": 3,
        "args": Namespace(arch="demo", lr=0.1),
        "x": [1],
    }
    torch.save(content, file)
    assert reading.read(file).beside == {"acc": 0.5, "epoch": 3, "args.arch": "demo", "args.lr": 0.1}


def test_what_was_taken_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "given.pt"
    weights = headed("model.")(bare(classifier())) | {"criterion.weight": torch.ones(5)}
    torch.save({"args": Stranger(), "state_dict": weights}, file)
    load(classifier(), file)
    assert [record.message for record in caplog.records] == [
        "given.pt: the weights are those under 'state_dict'.",
        "given.pt: 'model.' was taken off the names of the weights.",
        "given.pt: 1 tensors beside the network's are left out (criterion.weight).",
        f"given.pt: {Stranger.__module__}.Stranger in it are left unread; nothing of the file was run.",
    ]


def test_several_states_that_fit_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last, best, file = classifier(seed=1), classifier(seed=2), tmp_path / "given.pt"
    torch.save({"best_model": bare(best), "net": bare(last)}, file)
    load(ours := classifier(), file)
    assert same(ours, last) and "given.pt holds net, best_model, which all fit; net is read." in caplog.text
    torch.save({"args": Stranger(), "state_dict": bare(last), "model_ema": bare(best)}, file)
    load(ours, file)  # torch.load alone refuses such a file
    assert "save_file(torch.load(FILE, weights_only=False)['model_ema'], NEW) (which runs code that" in caplog.text


# --- pickled networks and pickles -------------------------------------------------------------------------------------

MODULE = """
from torch import nn

class Theirs(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.conv1, self.layer1, self.layer2, self.layer3, self.layer4 = net.conv1, net.layer1, net.layer2, net.layer3, net.layer4
        self.linear = net.linear

class Compiled:  # as torch.compile's, which is made anew from the network

    def __init__(self, network):
        self.network = network
    def __reduce__(self):
        return Compiled, (self.network,)
"""


@pytest.fixture
def theirs_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of somebody's with a network's class, which is gone once the file is written."""
    (tmp_path / "their_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("their_networks")
    yield module
    sys.modules.pop("their_networks", None)


@pytest.mark.parametrize("wrap", ["whole", "parallel", "net", "compiled"])
@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_pickled_network_is_read_without_its_class(
    write: Callable[[Any, Path], None], wrap: str, tmp_path: Path, theirs_module: Any
) -> None:
    given, file = classifier(seed=1), tmp_path / "model.pth"
    network = theirs_module.Theirs(given.net)
    content = {
        "whole": network,
        "parallel": nn.DataParallel(network),
        "net": {"net": network, "acc": 0.9},
        "compiled": theirs_module.Compiled(network),
    }[wrap]
    write(content, file)
    del sys.modules["their_networks"]
    (tmp_path / "their_networks.py").unlink()
    fit = load(ours := classifier(), file)
    assert same(ours, given) and fit.state.is_module and "their_networks.Theirs" in fit.found.foreign
    assert "their_networks" not in sys.modules


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_plain_pickle_of_tensors_is_read_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    given, file = classifier(seed=1), tmp_path / "weights.pkl"
    file.write_bytes(pickle.dumps({"net": bare(given), "acc": np.float64(0.5), "rows": {1, 2}}, protocol))
    fit = load(ours := classifier(), file)
    assert same(ours, given) and fit.found.format == "pickle" and fit.found.beside["acc"] == 0.5


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_weights_too(protocol: int, tmp_path: Path) -> None:
    given, file = classifier(seed=1), tmp_path / "weights.pkl"
    arrays = {name: value.numpy() for name, value in bare(given).items()}
    arrays["conv1.weight"] = np.asfortranarray(arrays["conv1.weight"])
    arrays["linear.bias"] = arrays["linear.bias"].astype(">f4")
    file.write_bytes(pickle.dumps(arrays, protocol))
    load(ours := classifier(), file)
    assert same(ours, given)


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_no_numbers_are_notes_beside_weights(protocol: int, tmp_path: Path) -> None:
    given, file = classifier(seed=1), tmp_path / "given.pt"
    beside = {
        "table": np.zeros(3, dtype=[("row", "i4"), ("loss", "f4")]),
        "when": np.datetime64("2026-11-30"),
        "days": np.arange("2026-11-01", "2026-11-05", dtype="datetime64[D]"),
        "any": np.array(["a", None], dtype=object),
    }
    torch.save({"net": bare(given), **beside}, file, pickle_protocol=protocol)
    fit = load(ours := classifier(), file)
    assert same(ours, given) and all(isinstance(fit.found.tree[name], Foreign) for name in beside)


def test_views_parameters_and_other_dtypes_are_rebuilt(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "columns": base.T, "part": base[1:3, ::2], "scalar": torch.tensor(3), "none": torch.empty(0, 3), "half": base.half(),
        "brain": base.bfloat16(), "flags": base > 3, "parameter": nn.Parameter(base), "expanded": torch.ones(1).expand(3, 4),
    }  # fmt: skip
    for write in (zipped, legacy):
        write({"state": tensors, "other": Stranger()}, tmp_path / "given.pt")
        (state,) = reading.read(tmp_path / "given.pt").states
        assert state.weights.keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(state.weights[name], value) and state.weights[name].dtype == value.dtype, name


# --- nothing runs -----------------------------------------------------------------------------------------------------

CALLS: list[str] = []


def tell(word: str = "called") -> str:
    """The harmless stand-in for what a hostile file would call."""
    CALLS.append(word)
    return word


class Loud:
    """Calls `tell` in every way that a pickle can when it is loaded as usual."""

    def __new__(cls, *_: Any) -> "Loud":
        CALLS.append("new")
        return super().__new__(cls)

    def __reduce__(self) -> Any:
        return tell, ("reduced",)

    def __setstate__(self, state: Any) -> None:
        CALLS.append("set")


HERE = __name__


def instructions(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


HOSTILE = {
    "reduce": instructions(f"c{HERE}\ntell\n".encode() + b"(X\x01\x00\x00\x00atR"),
    "a module that is not there yet": instructions(b"cthis_module_tells\nimported\n)R"),
    "a new object, then its state": instructions(f"c{HERE}\nLoud\n".encode() + b")\x81}b"),
    "an instance of old": instructions(f"(i{HERE}\nLoud\n".encode()),
    "an object of old": instructions(b"(" + f"c{HERE}\nLoud\n".encode() + b"o"),
    "a name from the stack": b"\x80\x04\x8c" + bytes([len(HERE)]) + HERE.encode() + b"\x8c\x04tell\x93)R.",
    "eval": instructions(b"cbuiltins\neval\n(X\x0f\x00\x00\x00CALLS.append(1)tR"),
    "getattr of a known name": instructions(b"cbuiltins\ngetattr\n(ctorch._utils\n_rebuild_tensor_v2\nX\x0b\x00\x00\x00__globals__tR"),
    "a builder with state": instructions(b"ctorch._utils\n_rebuild_parameter\n}X\x0c\x00\x00\x00__defaults__(K\x01tsb"),
    "a tensor's function of another type": instructions(
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + f"c{HERE}\ntell\n".encode() + b"N(X\x01\x00\x00\x00atNtR"
    ),
    "an array of objects": instructions(
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00O8tRX\x08\x00\x00\x00AAAAAAAAtR"
    ),
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": instructions(f"c{HERE}\ntell\n".encode() + b"Q"),
}  # fmt: skip


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is called or imported by the stand-ins from here on."""
    (tmp_path / "this_module_tells.py").write_text("import test_reading_stand_in\n")
    monkeypatch.syspath_prepend(tmp_path)
    CALLS.clear()
    real = builtins.__import__

    def listen(name: str, *rest: Any) -> Any:
        if name.startswith("this_module"):
            CALLS.append(f"import {name}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", listen)
    return CALLS


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_that_a_file_names_is_imported_or_called(kind: str, watched: list[str], tmp_path: Path) -> None:
    given = tmp_path / "given.pt"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", HOSTILE[kind])
        archive.writestr("archive/version", "3\n")
    for data in (buffer.getvalue(), HOSTILE[kind]):
        given.write_bytes(data)
        try:
            found = reading.read(given)
        except ModelError as error:
            assert "holds no weights that bdx can read" in str(error)
        else:
            assert not found.states
    assert watched == [] and "this_module_tells" not in sys.modules


def test_weights_beside_a_hostile_object_are_read_and_it_stays_a_note(watched: list[str], tmp_path: Path) -> None:
    given, file = classifier(seed=1), tmp_path / "given.pt"
    torch.save({"net": bare(given), "hook": Loud()}, file)
    watched.clear()
    fit = load(ours := classifier(), file)
    assert same(ours, given) and watched == []
    assert isinstance(fit.found.tree["hook"], Foreign) and fit.found.foreign == (f"{HERE}.tell",)


def archive(pickle_: bytes, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        made.writestr("archive/data.pkl", pickle_)
        for name, content in records.items():
            made.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def a_tensor(size: bytes, stride: bytes = b"(K\x01t", count: bytes = b"K\x04", offset: bytes = b"K\x00") -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"
    return instructions(
        b"}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89}tRs"
    )


HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x10"  # 2**44
ABSURD = {
    "a tensor beyond its storage": archive(a_tensor(b"(K\x63t"), {"data/0": bytes(16)}),
    "a negative offset": archive(a_tensor(b"(K\x01t", offset=b"J\xff\xff\xff\xff"), {"data/0": bytes(16)}),
    "a huge tensor of one value": archive(a_tensor(b"(" + HUGE + b"t", b"(K\x00t"), {"data/0": bytes(16)}),
    "a record that is not there": archive(a_tensor(b"(K\x04t"), {}),
    "a record that unpacks to more than the file": archive(
        a_tensor(b"(K\x04t"), {"data/0": bytes(2_000_000)}, zipfile.ZIP_DEFLATED
    ),
    "lists in lists, a hundred thousand deep": instructions(b"]" * 100_000 + b"a" * 99_999),
    "tuples in tuples as a key": instructions(b"})" + b"\x85" * 100_000 + b"K\x01s"),
    "a list in itself": instructions(b"]q\x00h\x00a"),
    "an instruction without a stack": instructions(b"R"),
    "a mark that is not there": instructions(b"t"),
    "a text of exabytes": instructions(b"\x8d\x00\x00\x00\x00\x00\x00\x00\x70"),
    "a slot that was never filled": instructions(b"h\x05"),
    "an end that is missing": b"\x80\x02}",
}  # fmt: skip


@pytest.mark.parametrize("kind", ABSURD)
def test_an_absurd_file_ends_in_a_paragraph(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "given.pt"
    file.write_bytes(ABSURD[kind])
    with pytest.raises(ModelError, match=r"given.pt (holds no weights that bdx can read|holds no state dict)"):
        load(classifier(), file)


@pytest.mark.parametrize("write", [zipped, legacy, lambda content, file: save_file(content, file)])
def test_a_file_that_was_cut_short_ends_in_a_paragraph(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    write({name: value.clone() for name, value in bare(classifier()).items()}, whole)
    data = whole.read_bytes()
    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.pt").write_bytes(data[: int(share * len(data))])
        with pytest.raises(ModelError, match=r"cut.pt (is empty|is not a readable|holds no weights)"):
            load(classifier(), tmp_path / "cut.pt")


def test_bytes_that_were_changed_end_in_a_paragraph_or_in_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_by_torch", lambda data: None)  # ours is the reader that is asked
    draw, file = random.Random(0), tmp_path / "given.pt"
    content = {"net": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "acc": np.float64(3), "rows": np.arange(3)}
    legacy(content, file)
    bases = [file.read_bytes(), *(pickle.dumps({"w": torch.ones(2), "acc": np.float64(1)}, each) for each in range(6))]
    zipped(content, file)
    with zipfile.ZipFile(file) as made:
        inner, records = (
            made.read("given/data.pkl"),
            {f"data/{key}": made.read(f"given/data/{key}") for key in range(4)},
        )
    for number in range(200):
        base = bytearray(inner if number % 2 else draw.choice(bases))
        for _ in range(draw.choice([1, 2, 8])):
            base[draw.randrange(len(base))] = draw.randrange(256)
        file.write_bytes(archive(bytes(base), records) if number % 2 else bytes(base))
        with contextlib.suppress(ModelError):
            reading.read(file)


# --- formats that are not read ----------------------------------------------------------------------------------------


def script(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(file))


def members(*names: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as made:
            for name in names:
                made.writestr(name, "x")

    return write


def picture(kind: str) -> Callable[[Path], None]:
    return lambda file: Image.new("RGB", (4, 4)).save(file, kind)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "Keras": (lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "is an HDF5 file, as Keras writes its networks (.h5)"),
    "Keras 3": (members("config.json", "model.weights.h5", "metadata.json"), "is a Keras archive (.keras)"),
    "TFLite": (lambda file: file.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100)), "is a TensorFlow Lite file"),
    "ONNX": (lambda file: file.write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x05" + bytes(100)), "is an ONNX file, in which batch norms are folded"),
    "TorchScript": (script, "is a TorchScript program, whose code bdx does not run"),
    "torch.export": (members("m/archive_format", "m/models/model.json"), "is a program of torch.export (.pt2)"),
    "arrays": (members("a.npy", "b.npy"), "is an archive of numpy arrays (.npz)"),
    "gzip": (lambda file: file.write_bytes(b"\x1f\x8b\x08" + bytes(100)), "is compressed by gzip"),
    "git-lfs": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a pointer of git-lfs"),
    "a web page": (lambda file: file.write_text("<!doctype html><html>"), "is a web page, not the file that it offers"),
    "nothing": (lambda file: file.touch(), "is empty"),
    "any zip file": (members("readme.txt"), "is a zip archive of readme.txt, not one that torch.save wrote"),
    "a zip file of weights": (members("a/", "a/best.pth", "a/last.pth"), "is a zip archive of a/best.pth, a/last.pth, not one that"),
    "an empty zip file": (members("a/"), "is a zip archive that holds nothing"),
    "a JPEG image": (picture("JPEG"), "is a JPEG image"),
    "a PNG image": (picture("PNG"), "is a PNG image"),
    "a GIF image": (picture("GIF"), "is a GIF image"),
    "a WebP image": (picture("WEBP"), "is a WebP image"),
    "a TIFF image": (picture("TIFF"), "is a TIFF image"),
    "a PDF document": (lambda file: file.write_bytes(b"%PDF-1.7\n" + bytes(50)), "is a PDF document"),
    "an array": (lambda file: file.write_bytes(b"\x93NUMPY\x01\x00" + bytes(50)), "is an array of numpy (.npy)"),
    "7z": (lambda file: file.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(50)), "is a 7z archive"),
    "xz": (lambda file: file.write_bytes(lzma.compress(b"x")), "is compressed by xz"),
    "bzip2": (lambda file: file.write_bytes(bz2.compress(b"x")), "is compressed by bzip2"),
    "an indented web page": (lambda file: file.write_text("\n  <HTML><body>"), "is a web page"),
    "a text": (lambda file: file.write_text("no weights, but a lämp\n" * 100), "is a text file"),
    "JSON": (lambda file: file.write_text('{"a": [1, 2]}'), "is a text file"),
    "a table": (lambda file: file.write_text("epoch,acc\n1,2\n"), "is a text file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_another_format_is_told_by_its_content_and_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    write, said = OTHERS[kind]
    write(file := tmp_path / "model.pth")
    with pytest.raises(ModelError) as caught:
        load(classifier(), file)
    assert str(caught.value).startswith(f"model.checkpoint={file} {said}")
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_weights_says_what_it_has(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "acc": 0.5}, file := tmp_path / "given.pt")
    with pytest.raises(ModelError, match=r"holds no state dict \(a dict of tensors\); it has 'epoch', 'acc'. Save"):
        load(classifier(), file)


@pytest.mark.parametrize("key", ["optimizer", ""])
def test_an_optimizers_state_is_not_taken_for_a_network(key: str, tmp_path: Path) -> None:
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(value.sum() for value in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    content = {"epoch": 3, key: optimizer.state_dict()} if key else optimizer.state_dict()
    torch.save(content, file := tmp_path / "given.pt")
    said = (
        rf"holds the state of an optimizer \({key or 'all of it'}\) and no weights of a network; expected a state dict"
    )
    with pytest.raises(ModelError, match=said):
        load(classifier(), file)
    assert reading.read(file).states == ()


@pytest.mark.parametrize(("name", "changes"), [("demo", {}), ("preact_resnet18", {}), ("resnet18", {})])
def test_another_number_of_classes_is_said_as_that(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    size = 8 if name == "demo" else 32
    torch.save(bare(classifier(name, 10, size, **changes)), file := tmp_path / "given.pt")
    with pytest.raises(
        ModelError, match=r"is of a network for 10 classes, and tiny is asked for: .* is \(10.* and \(9"
    ):
        load(classifier(name, 9, size, **changes), file)


def test_another_networks_weights_are_said_to_be_that(tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.zeros(4, 3, 3, 3), "n0.bias": torch.zeros(4)}, file := tmp_path / "given.pt")
    with pytest.raises(
        ModelError, match=r"holds the weights of another network than tiny: its names are stem.weight, n0.bias, "
    ):
        load(classifier(), file)
    torch.save(bare(classifier(width=8)), file)
    with pytest.raises(
        ModelError, match=r"does not fit tiny: .* there and .* here \(\d+ more differences\). Choose the model, width"
    ):
        load(classifier(), file)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    weights = {name: value.to(torch.int8) for name, value in bare(classifier()).items()}
    torch.save(weights, file := tmp_path / "given.pt")
    with pytest.raises(ModelError, match="holds int8 values in conv1.weight; expected fractions. It may be quantised"):
        load(classifier(), file)


# --- other names ------------------------------------------------------------------------------------------------------


def as_nad(weights: Weights) -> Weights:
    """A WRN's weights as NAD and ABL name them."""
    renamed = {}
    for name, value in weights.items():
        words = {"linear.": "fc.", "norm.": "bn1.", "shortcut.": "convShortcut."}
        for ours, theirs in words.items():
            name = (
                f"{theirs}{name.removeprefix(ours)}"
                if name.startswith(ours)
                else name.replace(f".{ours}", f".{theirs}")
            )
        parts = name.split(".")
        if parts[0].startswith("group"):
            parts[:2] = [f"block{parts[0][-1]}", "layer", parts[1]]
        renamed[".".join(parts)] = value
    return renamed


def test_a_wide_resnet_in_nads_names_is_matched_by_order_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def wide(seed: int) -> Classifier:
        return classifier("wrn_16_1", 10, 8, seed, style="standard", depth=22)

    theirs, ours, file = wide(1), wide(0), tmp_path / "s_net.pth.tar"
    torch.save({"epoch": 1, "state_dict": as_nad(bare(theirs))}, file)
    fit = load(ours, file)
    assert same(ours, theirs) and fit.by == "order"
    assert fit.places["net.group2.0.shortcut.weight"] == "block2.layer.0.convShortcut.weight"
    assert fit.places["net.norm.running_var"] == "bn1.running_var"
    assert f"s_net.pth.tar has other names than tiny: {len(fit.places)} weights were matched by execution order and shapes, such as "
    assert "conv1.weight -> conv1.weight, block1.layer.0.bn1.weight -> group1.0.bn1.weight" in caplog.text
    assert "net.linear.weight" in fit.table() and len(fit.table().splitlines()) == len(fit.places)


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(old, new): value for name, value in weights.items()}


def test_a_shortcut_is_told_by_its_name_where_two_norms_run_beside_each_other(tmp_path: Path) -> None:
    theirs, ours, file = classifier("resnet18", seed=1), classifier("resnet18"), tmp_path / "given.pt"
    torch.save(renamed("fc.", "linear.")(renamed("downsample", "shortcut")(bare(theirs))), file)
    assert load(ours, file).by == "order" and same(ours, theirs)


def test_registration_in_another_place_does_not_matter_where_names_tell(tmp_path: Path) -> None:
    theirs, ours, file = classifier("resnet18", seed=1), classifier("resnet18"), tmp_path / "given.pt"
    weights = renamed("downsample", "shortcut")(bare(theirs))
    torch.save(dict(sorted(weights.items(), key=lambda pair: "shortcut" not in pair[0])), file)
    load(ours, file)
    assert same(ours, theirs)


def test_norms_beside_each_other_that_no_name_tells_apart_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "given.pt"
    torch.save(renamed("downsample", "extra")(bare(classifier("resnet18"))), file)
    with pytest.raises(ModelError) as caught:
        load(classifier("resnet18"), file)
    assert str(caught.value) == (
        f"model.checkpoint={file} has the shapes of tiny under other names, but layer2.0.bn1 and layer2.0.downsample.1 have equal "
        "shapes and run beside each other, and its names (layer2.0.bn1, layer2.0.bn2, layer2.0.extra.1 and 2 more) do not say which "
        "is which. Rename its weights as that network has them, or name its own: model=module model.target=PACKAGE.MODULE:FACTORY."
    )


def test_a_safetensors_file_under_other_names_is_refused_for_its_order(tmp_path: Path) -> None:
    save_file(renamed("linear", "fc")(bare(classifier())), file := tmp_path / "given.safetensors")
    with pytest.raises(
        ModelError, match=r"linear.bias is missing .* a safetensors file does not keep the order that would"
    ):
        load(classifier(), file)


@pytest.mark.parametrize("change", ["one layer too many", "a bias more", "another shape"])
def test_a_network_that_is_another_is_not_matched_by_order(change: str, tmp_path: Path) -> None:
    weights = renamed("linear", "fc")(bare(classifier(classes=6 if change == "another shape" else 5)))
    if change == "one layer too many":
        weights["extra.weight"] = torch.zeros(2, 2)
    elif change == "a bias more":
        weights["conv1.bias"] = torch.zeros(4)
    torch.save(weights, file := tmp_path / "given.pt")
    with pytest.raises(ModelError, match="does not fit tiny: "):
        load(classifier(), file)


# --- written back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [zipped, legacy])
def test_purified_weights_are_written_as_the_file_had_them(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    given, purified = classifier(seed=1), classifier(seed=2)
    weights = headed("w.module.")(bare(given)) | {"criterion.weight": torch.ones(2)}
    weights["w.module.conv1.weight"] = weights["w.module.conv1.weight"].half()
    content = {"epoch": 3, "state_dict": weights, "args": {"lr": 0.1}, "history": [1, (2, 3)]}
    write(content, tmp_path / "given.pth")
    fit = load(classifier(), tmp_path / "given.pth")
    checkpoint.save_as(fit, purified, tmp_path / "out" / "clean.pth")
    read = torch.load(tmp_path / "out" / "clean.pth", weights_only=True)
    assert {name: value for name, value in read.items() if name != "state_dict"} == {
        name: value for name, value in content.items() if name != "state_dict"
    }
    assert list(read["state_dict"]) == list(weights)
    assert read["state_dict"]["w.module.conv1.weight"].dtype == torch.float16
    again = load(reread := classifier(), tmp_path / "out" / "clean.pth")
    assert torch.equal(reread.net.linear.weight, purified.net.linear.weight) and again.found.format == fit.found.format


def test_purified_weights_under_other_names_are_written_under_those(tmp_path: Path) -> None:
    theirs, purified = classifier("wrn_16_1", style="standard"), classifier("wrn_16_1", seed=2, style="standard")
    torch.save({"state_dict": as_nad(bare(theirs))}, tmp_path / "given.pt")
    fit = load(classifier("wrn_16_1", style="standard"), tmp_path / "given.pt")
    checkpoint.save_as(fit, purified, tmp_path / "clean.pt")
    read = torch.load(tmp_path / "clean.pt", weights_only=True)["state_dict"]
    wanted = as_nad(bare(purified))
    assert list(read) == list(wanted) and all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_weights_that_are_written_less_precise_than_they_were_judged_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    halves = {name: value.bfloat16() if value.ndim > 1 else value for name, value in bare(classifier(seed=1)).items()}
    torch.save(halves, file := tmp_path / "given.pt")
    checkpoint.save_as(load(ours := classifier(), file), ours, written := tmp_path / "clean.pt")
    assert torch.load(written)["conv1.weight"].dtype == torch.bfloat16
    assert (
        "clean.pt has weights in bfloat16, as given.pt has them: they are rounded from those that were" in caplog.text
    )


def test_a_safetensors_file_is_written_as_one(tmp_path: Path) -> None:
    given, purified = classifier(seed=1), classifier(seed=2)
    save_file(headed("module.")(bare(given)), tmp_path / "given.safetensors", {"format": "pt"})
    fit = load(classifier(), tmp_path / "given.safetensors")
    checkpoint.save_as(fit, purified, tmp_path / "clean.safetensors")
    read = load_file(tmp_path / "clean.safetensors")
    assert torch.equal(read["module.linear.weight"], purified.net.linear.weight)
    assert reading.read(tmp_path / "clean.safetensors").metadata == {"format": "pt"}


@pytest.mark.parametrize("kind", ["foreign", "module", "pickle"])
def test_what_holds_more_than_tensors_becomes_a_plain_state_dict(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, purified, file = classifier(seed=1), classifier(seed=2), tmp_path / "given.pt"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(bare(given)))
    else:
        torch.save({"net": bare(given), "who": Stranger()} if kind == "foreign" else given.net, file)
    fit = load(classifier(), file)
    checkpoint.save_as(fit, purified, tmp_path / "clean.pt")
    assert (
        "given.pt holds more than tensors and plain values, which bdx does not build: clean.pt is the plain state dict"
        in caplog.text
    )
    read = torch.load(tmp_path / "clean.pt", weights_only=True)
    assert list(read) == list(bare(given)) and torch.equal(read["linear.weight"], purified.net.linear.weight)


def test_a_network_that_lost_a_layer_is_not_written_under_the_files_names(tmp_path: Path) -> None:
    torch.save(bare(classifier()), tmp_path / "given.pt")
    fit = load(model := classifier(), tmp_path / "given.pt")
    model.net.linear = nn.Identity()
    with pytest.raises(ModelError, match="the network has no net.linear.bias any more"):
        checkpoint.save_as(fit, model, tmp_path / "clean.pt")
    assert not (tmp_path / "clean.pt").exists()
