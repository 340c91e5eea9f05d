"""What a file of weights is, told by its first bytes, and what it holds: a tree of tensors, plain values and notes of the rest.

Read     safetensors; torch's zip and legacy files, by torch's own `weights_only` and else by `unpickling`; plain pickles
Refused  formats of other libraries and torch's programs, each with what to do instead
"""

import io
import json
import re
import struct
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from backdoorbench.errors import ModelError, few, first_line, no_weights
from backdoorbench.models.unpickling import STORAGES, Builders, Global, Machine, Storage

Format = Literal["safetensors", "torch zip", "legacy", "pickle"]

MAGIC = 0x1950A86A20F9469CFC6C  # the first value of torch's legacy files
DEEPEST = 2  # files in pickles in files
NAME_IT = "Name the file of weights instead."
UNPACK = "Unpack it and name the file of weights inside."
AGAIN = "Save the network's weights alone where it runs, torch.save(model.state_dict(), FILE), and name that file."
KERAS = (
    "bdx reads networks of PyTorch. Rebuild the network there and copy its weights into it (a convolution's kernel is "
    "(H, W, I, O) in Keras and (O, I, H, W) in PyTorch, a dense layer's (I, O) and (O, I); a batch norm's epsilon is "
    "1e-3 in Keras and 1e-5 in PyTorch), then torch.save(model.state_dict(), FILE)."
)
OTHERS: tuple[tuple[bytes, int, str, str], ...] = (  # bytes, where they stand, what that is, what to do
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file, as Keras writes its networks (.h5)", KERAS),
    (b"TFL3", 4, "a TensorFlow Lite file", KERAS),
    (b"ustar", 257, "a tar archive", f"Unpack it and name the file of weights inside. Of torch before 0.2: {AGAIN}"),
    (b"\x1f\x8b", 0, "compressed by gzip", "Unpack it (gunzip, tar -x) and name the file inside."),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", UNPACK),
    (b"\xfd7zXZ\x00", 0, "compressed by xz", UNPACK),
    (b"BZh", 0, "compressed by bzip2", UNPACK),
    (b"\x28\xb5\x2f\xfd", 0, "compressed by zstd", UNPACK),
    (b"Rar!", 0, "a RAR archive", UNPACK),
    (b"\xff\xd8\xff", 0, "a JPEG image", NAME_IT),
    (b"\x89PNG\r\n\x1a\n", 0, "a PNG image", NAME_IT),
    (b"GIF8", 0, "a GIF image", NAME_IT),
    (b"WEBP", 8, "a WebP image", NAME_IT),
    (b"II*\x00", 0, "a TIFF image", NAME_IT),
    (b"MM\x00*", 0, "a TIFF image", NAME_IT),
    (b"%PDF-", 0, "a PDF document", NAME_IT),
    (b"\x93NUMPY", 0, "an array of numpy (.npy)", AGAIN),
    (b"PAR1", 0, "a table in parquet", NAME_IT),
    (b"SQLite format 3", 0, "a database of SQLite", NAME_IT),
    (b"\x7fELF", 0, "a program", NAME_IT),
    (b"version https://git-lfs", 0, "a pointer of git-lfs, not the file itself", "Fetch the file: git lfs pull."),
    (b"GGUF", 0, "a GGUF file", AGAIN),
)
ONNX = (
    "an ONNX file, in which batch norms are folded into convolutions and layers have lost their names",
    f"Take the weights from before the export. {AGAIN}",
)
PART = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$")  # how one of several files of a network's weights is called
JOINED = {  # the ending of such a file -> what reads one, and what writes all of them in one
    "safetensors": ("safetensors.torch.load_file(file)", "safetensors.torch.save_file({}, 'whole.safetensors')"),
    "bin": ("torch.load(file, weights_only=True)", "torch.save({}, 'whole.bin')"),
}
DISTRIBUTED = (".distcp", ".metadata")  # the ends of what torch.distributed.checkpoint writes into a folder
PROGRAMS = {  # the end of a record's name in a zip file -> what that is, what to do
    "constants.pkl": (
        "a TorchScript program, whose code bdx does not run",
        "Where it was made, or in a sandbox: torch.save(torch.jit.load(FILE).state_dict(), NEW), and name that file.",
    ),
    "archive_format": (
        "a program of torch.export (.pt2), whose code bdx does not run",
        "Where it was made, or in a sandbox: torch.save(torch.export.load(FILE).state_dict, NEW), and name that file.",
    ),
    "serialized_exported_program.json": (
        "a program of torch.export (.pt2), whose code bdx does not run",
        "Where it was made, or in a sandbox: torch.save(torch.export.load(FILE).state_dict, NEW), and name that file.",
    ),
    "model.weights.h5": ("a Keras archive (.keras)", KERAS),
}


@dataclass(frozen=True)
class Content:
    """foreign: names of what the file would have made by code of its own; metadata: texts that a safetensors file has beside"""

    format: Format
    tree: Any
    foreign: tuple[str, ...] = ()
    metadata: dict[str, str] | None = None


def read(file: Path, named: str) -> Content:
    """What a file holds.

    named  the file as the user named it, for messages

    Raises ModelError where it is none, is damaged, or is of a format that is not read."""
    if not file.is_file():
        raise no_weights(named, file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{named} cannot be read ({error.strerror}); expected a file of weights. Name another."
        ) from None
    if file.name.endswith(DISTRIBUTED):
        raise ModelError(
            f"{named} is one of the files that torch.distributed.checkpoint writes for the processes of a training; expected "
            f"whole weights. Join them: torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE), and name that "
            f"file."
        )
    refuse_others(data, named)
    refuse_parts(data, file, named)
    try:
        if data[:4] == b"PK\x03\x04":
            return _zip(data, named)
        if is_safetensors(data):
            return _safetensors(data)
        return _legacy_or_pickle(data)
    except ModelError:
        raise
    except (SafetensorError, zipfile.BadZipFile) as error:
        kind = "safetensors" if isinstance(error, SafetensorError) else "torch"
        raise ModelError(
            f"{named} is not a readable {kind} file ({first_line(error)}); it is damaged or was cut short. Fetch it again."
        ) from None
    except Exception as error:  # of a damaged or hostile file anything may come
        if is_text(data):  # as pickles of the oldest protocol are too, which are read
            raise ModelError(f"{named} is a text file; expected weights of PyTorch. {NAME_IT}") from None
        raise ModelError(
            f"{named} holds no weights that bdx can read ({first_line(error)}); expected a safetensors file, or a state dict as "
            f"torch.save writes it. Save the network again with torch.save(model.state_dict(), FILE)."
        ) from None


def refuse_others(data: bytes, named: str) -> None:
    """Raises ModelError for an empty file, and for one of another library, by its first bytes."""
    if not data:
        raise ModelError(f"{named} is empty; expected a file of weights. Fetch it again, or name another.")
    if data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower().startswith((b"<!doctype", b"<html")):
        raise ModelError(
            f"{named} is a web page, not the file that it offers; expected weights of PyTorch. Download the file itself."
        )
    for magic, start, what, remedy in OTHERS:
        if data[start : start + len(magic)].lower() == magic.lower():
            raise ModelError(f"{named} is {what}; expected weights of PyTorch. {remedy}")
    if (
        data[0] == 0x08 and 3 <= data[1] <= 20 and data[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")
    ):  # its fields
        raise ModelError(f"{named} is {ONNX[0]}; expected weights of PyTorch. {ONNX[1]}")


def refuse_parts(data: bytes, file: Path, named: str) -> None:
    """Raises ModelError for a network whose weights lie in several files: for one of these, and for the index of all."""
    part = PART.search(file.name)
    is_index = data[:1] == b"{" and b'"weight_map"' in data
    if not is_index and (part is None or int(part[1]) == 1):
        return
    what = f"{'the index' if part is None else 'one'} of several files of a network's weights"
    ending = "safetensors" if b".safetensors" in (data if is_index else file.name.encode()) else "bin"
    load, save = JOINED[ending]
    whole = f"{{name: value for file in glob.glob('*-of-*.{ending}') for name, value in {load}.items()}}"
    raise ModelError(
        f'{named} is {what}; expected all of them in one. Join them, in their folder: python -c "import glob, torch, '
        f'safetensors.torch; {save.format(whole)}"'
    )


def is_text(data: bytes) -> bool:
    """Whether it begins with lines that somebody could read."""
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    start = start[:-1] if len(data) > 1024 else start  # which may be half a letter
    return bool(start) and all((sign.isprintable() and sign != "\ufffd") or sign in "\t\r\n" for sign in start)


def is_safetensors(data: bytes) -> bool:
    """Whether a header of JSON follows its own length."""
    return len(data) > 8 and data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] <= len(data) - 8


def _safetensors(data: bytes) -> Content:
    """Its tensors as they lie in the file, whose order the library does not keep."""
    weights = load_safetensors(data)
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    metadata = header.pop("__metadata__", None)
    order = sorted(header, key=lambda name: header[name]["data_offsets"])
    return Content("safetensors", {name: weights[name] for name in order}, metadata=metadata)


# --- torch's own -----------------------------------------------------------------------------------------------------


def _zip(data: bytes, named: str) -> Content:
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = archive.namelist()
    for ending, (what, remedy) in PROGRAMS.items():
        if any(name.rpartition("/")[2] == ending for name in names):
            raise ModelError(f"{named} is {what}; expected weights of PyTorch. {remedy}")
    inside = [name for name in names if not name.endswith("/")]
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        if inside and all(name.endswith(".npy") for name in inside):
            raise ModelError(f"{named} is an archive of numpy arrays (.npz); expected weights of PyTorch. {AGAIN}")
        holds = f"of {few(inside)}" if inside else "that holds nothing"
        raise ModelError(
            f"{named} is a zip archive {holds}, not one that torch.save wrote; expected weights of PyTorch. If one of "
            f"its files has weights, unpack it and name that."
        )
    plain = _by_torch(data)
    return Content("torch zip", plain) if plain is not None else _Archive(archive, names, len(data)).content()


def _by_torch(data: bytes) -> Any:
    """What torch itself reads of a file that holds nothing but weights and plain values; None where there is more."""
    try:
        with warnings.catch_warnings():  # of kinds of tensors that torch gives up
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # of another kind for every reason; the second reader finds it too, and says it
        return None


class _Archive:
    """A torch zip file: a pickle, and beside it a record of bytes for each storage."""

    def __init__(self, archive: zipfile.ZipFile, names: list[str], size: int) -> None:
        self.archive, self.left = archive, size
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("a zip archive without torch's data.pkl" if not pickles else "an archive of several")
        self.pickle, self.head = pickles[0], pickles[0].removesuffix("data.pkl")
        order = f"{self.head}byteorder"
        if order in names and self._record(order) != sys.byteorder.encode():
            raise ValueError("a file of a machine with another byte order")
        self.storages: dict[str, Storage] = {}

    def content(self) -> Content:
        machine = Machine(io.BytesIO(self._record(self.pickle)), self._storage)
        return Content("torch zip", machine.run(), tuple(machine.foreign))

    def _record(self, name: str) -> bytes:
        """A record's bytes; all of them together have no more than the file has, since torch compresses nothing."""
        self.left -= self.archive.getinfo(name).file_size
        if self.left < 0:
            raise ValueError("its records are larger than the file")
        return self.archive.read(name)

    def _storage(self, identity: Any) -> Storage:
        _, kind, key, *_ = identity
        if key not in self.storages:
            self.storages[key] = Storage(bytearray(self._record(f"{self.head}data/{key}")), STORAGES.get(kind.name))
        return self.storages[key]


def _legacy_or_pickle(data: bytes, depth: int = 0) -> Content:
    stream = io.BytesIO(data)
    builders: Builders = {Global("torch.storage", "_load_from_bytes"): lambda inner: _nested(inner, depth)}
    machine = Machine(stream, _no_storage, builders)
    first = machine.run()
    if first != MAGIC:
        return Content("pickle", first, tuple(machine.foreign))
    plain = _by_torch(data) if depth == 0 else None
    return Content("legacy", plain) if plain is not None else _legacy(stream, len(data))


def _nested(data: Any, depth: int) -> Any:
    """A storage that was pickled without torch.save: a torch file inside the pickle."""
    if depth >= DEEPEST or not isinstance(data, bytes):
        raise ValueError("files inside files inside a file")
    return _legacy_or_pickle(data, depth + 1).tree


def _no_storage(identity: Any) -> Any:
    raise ValueError("a pickle that refers to what is not in it")


def _legacy(stream: io.BytesIO, size: int) -> Content:
    """What follows the magic number: two facts of the machine, the pickle, the storages' names, their bytes."""
    storages: dict[str, Storage] = {}
    left = size

    def resolve(identity: Any) -> Any:
        nonlocal left
        if identity[0] == "module":  # with its source code
            return identity[1]
        _, kind, key, _, count, *view = identity
        if key not in storages:
            dtype = STORAGES.get(kind.name, torch.uint8)
            left -= (length := int(count) * dtype.itemsize)
            if left < 0 or length < 0:
                raise ValueError("its storages are larger than the file")
            storages[key] = Storage(bytearray(length), dtype)
        if view and view[0] is not None:
            _, offset, length = view[0]
            own = storages[key]
            assert own.dtype is not None
            return Storage(
                memoryview(own.data)[offset * own.dtype.itemsize :][: length * own.dtype.itemsize], own.dtype
            )
        return storages[key]

    for _ in range(2):
        Machine(stream, _no_storage).run()
    machine = Machine(stream, resolve)
    tree = machine.run()
    for key in Machine(stream, _no_storage).run():
        stream.read(8)  # how many values
        storage = storages[key]
        if stream.readinto(storage.data) != len(storage.data):
            raise ValueError("it ends before its last tensor")
    return Content("legacy", tree, tuple(machine.foreign))
