"""Pickles read as data: tensors and plain values are built; whatever else a pickle names stays a note of its name and arguments.

A pickle is a program for a small stack machine, and two of its instructions import and call what the file likes. Here the machine
is our own: the standard library's `pickletools` takes the program apart, and a name is only ever looked up in BUILDERS, functions
of this file. Nothing is imported, and nothing outside this file is called with what the file says.
"""

import math
import pickletools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

MOST_VIRTUAL = 2**24  # values of a tensor whose storage has fewer of them: one that strides of 0 repeat
KEYS = (str, int, float, bool, bytes, type(None))  # of dicts; others could hash without end
PAIRS = 2


@dataclass(frozen=True)
class Global:
    """A function or class that a pickle names: its name, and nothing of what it is."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Foreign:
    """What a pickle would have made by code of its own: an object of `kind`, as what the file says of it.

    state  what it would have been given after it was made: most often a dict of attributes
    items, entries  what would have been put into it, were it a list or a dict"""

    kind: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)

    @property
    def inside(self) -> dict[Any, Any]:
        """Its attributes and entries; a network's attributes may be its first argument, as torch.fx makes those it traces."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)  # of slots, where it is a pair
        if self.arguments and isinstance(self.arguments[0], dict) and "_modules" in self.arguments[0]:
            states = (self.arguments[0], *states)
        found: dict[Any, Any] = {}
        for state in states:
            found |= state if isinstance(state, dict) else {}
        return found | self.entries


@dataclass
class Storage:
    """Bytes of which tensors are views. data: writable; dtype: None where each tensor says its own."""

    data: Any
    dtype: torch.dtype | None

    def whole(self, dtype: torch.dtype | None = None) -> Tensor:
        """All of it, one value after the other."""
        kind = dtype or self.dtype or torch.uint8
        return torch.frombuffer(self.data, dtype=kind) if len(self.data) else torch.empty(0, dtype=kind)


class Machine:
    """Runs one pickle of a stream.

    resolve  what a persistent id stands for: in torch's files, a storage
    more     builders beside BUILDERS
    foreign  afterwards: the names that the file would have imported and that no builder has"""

    def __init__(self, stream: BinaryIO, resolve: Callable[[Any], Any], more: "Builders | None" = None) -> None:
        self.stream, self.resolve, self.builders = stream, resolve, BUILDERS | (more or {})
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under each mark
        self.memo: dict[int, Any] = {}
        self.foreign: dict[str, None] = {}

    def run(self) -> Any:
        """The value that the pickle describes; any Exception where it is damaged."""
        for instruction, argument, _ in pickletools.genops(self.stream):
            name = instruction.name
            if name == "STOP":
                return self.stack.pop()
            if name in LITERALS:
                self.stack.append(argument)
            elif name in MADE:
                self.stack.append(MADE[name]())
            elif name not in IGNORED:
                getattr(self, f"_{name.lower()}")(argument)
        raise EOFError("the pickle ends early")

    # --- the stack, and what stands on it

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _above_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.below.pop()
        return above

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._above_mark()

    def _pop_mark(self, _: Any) -> None:
        self._above_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]
        if isinstance(self.stack[-1], Array):
            self.stack[-1].slot = slot

    def _memoize(self, _: Any) -> None:
        self._put(len(self.memo))

    def _get(self, slot: int) -> None:
        self.stack.append(self.memo[slot])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    # --- containers

    def _take(self, count: int) -> list[Any]:
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        if len(taken) < count:
            raise ValueError("an instruction finds too little on the stack")
        return taken

    def _tuple1(self, _: Any) -> None:
        self.stack.append(tuple(self._take(1)))

    def _tuple2(self, _: Any) -> None:
        self.stack.append(tuple(self._take(2)))

    def _tuple3(self, _: Any) -> None:
        self.stack.append(tuple(self._take(3)))

    def _tuple(self, _: Any) -> None:
        above = self._above_mark()
        self.stack.append(tuple(above))

    _frozenset = _tuple

    def _list(self, _: Any) -> None:
        above = self._above_mark()
        self.stack.append(above)

    def _dict(self, _: Any) -> None:
        above = self._above_mark()
        self.stack.append({})
        _put_in(self.stack[-1], above)

    def _append(self, _: Any) -> None:
        _extend(self.stack[-2], self._take(1))

    def _appends(self, _: Any) -> None:
        above = self._above_mark()
        _extend(self.stack[-1], above)

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        pair = self._take(PAIRS)
        _put_in(self.stack[-1], pair)

    def _setitems(self, _: Any) -> None:
        above = self._above_mark()
        _put_in(self.stack[-1], above)

    # --- what would import, and what would call

    def _global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        self._name(str(module), str(name))

    def _name(self, module: str, name: str) -> None:
        named = Global(module, name)
        if named not in self.builders and not is_known(named):
            self.foreign[str(named)] = None
        self.stack.append(named)

    def _reduce(self, _: Any) -> None:
        called, arguments = self._take(2)
        self.stack.append(make(called, arguments, self.builders))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        called, arguments, _named = self._take(3)
        self.stack.append(make(called, arguments, self.builders))

    def _inst(self, argument: str) -> None:
        arguments = self._above_mark()
        self._name(*argument.split(" ", 1))
        self.stack.append(make(self.stack.pop(), tuple(arguments), self.builders))

    def _obj(self, _: Any) -> None:
        called, *arguments = self._above_mark()
        self.stack.append(make(called, tuple(arguments), self.builders))

    def _build(self, _: Any) -> None:
        made, state = self._take(2)
        if isinstance(made, Foreign):
            made.state = state
        elif isinstance(made, DType):
            made.order = str(state[1])
        elif isinstance(made, Array):
            slot, made = made.slot, made.filled(state)
            self.memo |= {slot: made} if slot is not None else {}
        self.stack.append(made)

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.resolve(self.stack.pop()))

    def _persid(self, argument: str) -> None:
        self.stack.append(self.resolve(argument))


LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
IGNORED = {"PROTO", "FRAME"}


def make(called: Any, arguments: Any, builders: "Builders") -> Any:
    """What a call leaves: of a builder, its value; of anything else, a note."""
    given = tuple(arguments) if isinstance(arguments, list | tuple) else (arguments,)
    builder = builders.get(called) if isinstance(called, Global) else None
    return builder(*given) if builder is not None else Foreign(called, given)


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, Foreign):
        target.items.extend(values)


def _put_in(target: Any, flat: list[Any]) -> None:
    """Keys and values in turn, into a dict; those under a key that is no plain value are left out."""
    entries = target.entries if isinstance(target, Foreign) else target
    if isinstance(entries, dict):
        pairs = zip(flat[::PAIRS], flat[1::PAIRS], strict=True)
        entries.update((key, value) for key, value in pairs if isinstance(key, KEYS))


# --- numpy ------------------------------------------------------------------------------------------------------------


@dataclass
class DType:
    """A numpy dtype: `f8`, and the byte order that it is told afterwards."""

    code: str
    order: str = "="

    @property
    def is_read(self) -> bool:
        """Whether it is of numbers or texts, and not of dates, records or objects."""
        return re.fullmatch(r"[biufcSU]\d{1,4}|[?]", self.code) is not None

    def read(self) -> np.dtype[Any]:
        """The dtype of numbers or texts."""
        return np.dtype(self.code).newbyteorder(self.order if self.order in "<>" else "=")  # type: ignore[arg-type]


@dataclass
class Array:
    """A numpy array before it is told its content. slot: where the machine's memo has it."""

    slot: int | None = None

    def filled(self, state: Any) -> Any:
        """The array that numpy's `__setstate__` would make: a tensor of numbers; a note where it holds anything else."""
        _, shape, dtype, by_columns, content = state
        if not isinstance(content, bytes) or not dtype.is_read:
            return Foreign(Global("numpy", "ndarray"), (shape,), items=content if isinstance(content, list) else [])
        return array(content, dtype, shape, "F" if by_columns else "C")


def array(content: Any, dtype: DType, shape: Any, order: str = "C") -> Any:
    """A tensor of what an array holds, its list where that is texts, a note where it is neither."""
    if not dtype.is_read:
        return Foreign(Global("numpy", "ndarray"), (shape,))
    found = np.frombuffer(bytes(content), dtype.read()).reshape(_numbers(shape), order="F" if order == "F" else "C")
    if found.dtype.kind in "SU":
        return found.tolist()
    return torch.from_numpy(np.ascontiguousarray(found, found.dtype.newbyteorder("=")).reshape(found.shape).copy())


def scalar(dtype: DType, content: Any = b"") -> Any:
    """The plain number that a numpy scalar is; a note of a date or a record."""
    if not dtype.is_read:
        return Foreign(Global("numpy", dtype.code))
    return np.frombuffer(bytes(content), dtype.read())[0].item()


# --- torch ------------------------------------------------------------------------------------------------------------


def tensor(storage: Storage, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """The view that torch would rebuild. rest: whether it wants a gradient, its hooks, and of newer files its dtype."""
    kinds = [DTYPES[value.name] for value in rest if isinstance(value, Global) and value.name in DTYPES]
    whole = storage.whole(*kinds[:1])
    shape = _numbers(size)
    if math.prod(shape) > max(whole.numel(), MOST_VIRTUAL):
        raise ValueError(f"a tensor of shape {shape} is larger than its storage of {whole.numel():,} values")
    return torch.as_strided(whole, shape, _numbers(stride), int(offset))


def _numbers(value: Any) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(value)
    if not all(isinstance(number, int) and 0 <= number < sys.maxsize for number in found):
        raise ValueError(f"{value!r} is no shape")
    return found


DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STORAGES = {
    f"{name}Storage": kind
    for name, kind in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
        "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
        "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip


def is_known(named: Global) -> bool:
    """Whether a name is only a word for tensors: a kind of storage, a dtype, numpy's class of arrays."""
    words = (named.module in ("torch", "torch.cuda", "torch.storage")) and (
        named.name in STORAGES or named.name in DTYPES or named.name == "UntypedStorage"
    )
    return words or (named.module == "numpy" and named.name == "ndarray")


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """The dict that `dict`, `OrderedDict` or, after its factory, `defaultdict` would make."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list | dict) else []
    listed = list(pairs.items()) if isinstance(pairs, dict) else [tuple(pair) for pair in pairs]
    return {key: value for key, value in listed if isinstance(key, KEYS)}


def _listing(values: Any = ()) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else []


def _bytes(text: str = "", encoding: str = "latin1", *_: Any) -> bytes:
    """Bytes as old protocols write them: a text, and the encoding that makes them of it."""
    return text.encode("latin1") if isinstance(text, str) and encoding in ("latin1", "latin-1") else b""


def _passed(value: Any, *_: Any) -> Any:
    return value


Builders = dict[Global, Callable[..., Any]]
BUILDERS: Builders = {
    Global("collections", "OrderedDict"): _mapping,
    Global("collections", "defaultdict"): lambda *_: {},
    **{
        Global(module, name): _listing
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "list")
    },
    **{Global(module, "bytearray"): _bytes for module in ("builtins", "__builtin__")},
    Global("_codecs", "encode"): _bytes,
    **{Global(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{Global(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: Array() for core in ("core", "_core")},
    **{Global(f"numpy.{core}.numeric", "_frombuffer"): array for core in ("core", "_core")},
    Global("numpy", "dtype"): lambda code="", *_: DType(str(code)),
    Global("torch", "Size"): lambda size=(): tuple(size),
    Global("torch", "device"): lambda *where: ":".join(map(str, where)),
    Global("torch.serialization", "_get_layout"): _passed,
    Global("torch._utils", "_rebuild_tensor"): tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): tensor,
    Global("torch._utils", "_rebuild_parameter"): _passed,
    Global("torch._utils", "_rebuild_parameter_with_state"): _passed,
    Global("torch._tensor", "_rebuild_from_type_v2"): lambda function, _kind, arguments, *_: make(
        function, arguments, BUILDERS
    ),
}
