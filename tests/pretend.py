"""A device that is not there: `bdx` runs on it, and a tensor left on the CPU fails as it would on a GPU, without a GPU.

A backend of torch's, registered from Python, whose tensors say `pretend:0`, hold their numbers on the CPU, and compute there. They
refuse to meet a CPU tensor, except where CUDA takes one: copies, indices, and single numbers (no dimension) in arithmetic. A
generator draws on the device it was made on, and `.numpy()` wants `.cpu()` first.

It shows   a tensor, a generator or an array on the wrong device, in whatever code runs; and which line
It cannot  take a branch of `device.type == "cuda"` (channels last, fused optimisers, TF32, pinned memory); autocast (float32 only);
           streams and other order of execution; memory that runs out; speed: an operation costs a hundred microseconds, so that
           what makes thousands of small ones is slow here
Differs    a module that moves here has new parameters (on CUDA they are the same objects); inference mode is no_grad

    python tests/pretend.py OUTPUTS [host]    carries out what it reads from standard input, one a line, and answers each with a
                                              Report in a line of JSON: a row of the contract and further words
                                              (attack=wanet attack.mode=append), one of FAULTS, or an expression of
                                              `here` and `there` (=here + there)
                                              host: images stay in the CPU's memory, as where a GPU is too small for them

The process is changed for good, so tests start it as a command (test_pretend.py).
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import contract
import numpy
import torch
from conftest import QUICK
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from backdoorbench import device
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.pipeline import infect, job, plan, purify
from backdoorbench.storage.record import Finding

NAME = "pretend"
POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # in this version of torch

# ---- the device -----------------------------------------------------------------------------------------------------

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
INDEXED_WRITING = {
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
FILLING = {aten.fill.Tensor, aten.fill_.Tensor}
MASKED_FILLING = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor}


class Backend:
    """What torch asks of a device's module. operations: how many the device has carried out."""

    operations = 0

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def nothing(self, *_: object) -> None:
        """Seeds and streams: there are none."""

    manual_seed = manual_seed_all = set_rng_state = synchronize = nothing

    def _is_in_bad_fork(self) -> bool:
        return False


class Pretend(Tensor):
    """A tensor on the device; `held` are its numbers, on the CPU. Views share them, as views do."""

    held: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretend":
        made: Pretend = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, layout=held.layout,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carry_out(function, args, kwargs or {})

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"Pretend({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, **_: object) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __reduce_ex__(self, protocol: Any) -> Any:  # a snapshot is read onto the CPU
        return self.held.__reduce_ex__(protocol)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> "Pretend":
        return Pretend(inner["held"])


class Pretending(TorchDispatchMode):
    """While it lasts, tensors that are asked for on the device are made there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_here(kwargs.get("device")) or any(
            isinstance(leaf, Pretend) for leaf in pytree.tree_leaves((args, kwargs))
        ):
            return carry_out(function, args, kwargs)
        check_generator(kwargs.get("generator"), False)
        return function(*args, **kwargs)


def carry_out(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operation, on what the tensors hold. Its result is on the device if an argument is, or if it is asked for there."""
    Backend.operations += 1
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, Pretend)]
    is_met = len(strangers) < len(tensors)
    if is_met and strangers and not may_meet(function, args, strangers):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({function})"
        )
    options, result_is_here = dict(kwargs), is_met
    if options.get("device") is not None:
        result_is_here = is_here(options["device"])
        options["device"] = torch.device("cpu")
    check_generator(options.get("generator"), result_is_here)
    options.pop("pin_memory", None)
    plain_args, plain_options = pytree.tree_map_only(Pretend, lambda tensor: tensor.held, (tuple(args), options))
    result = function(*plain_args, **plain_options)
    if function._schema.name.endswith("_") and args and isinstance(args[0], Tensor):
        return args[0]  # in place
    if "out" in kwargs:
        return kwargs["out"]
    if not result_is_here or function is aten._local_scalar_dense.default:
        return result
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor if isinstance(tensor, Pretend) else Pretend(tensor), result
    )


def may_meet(function: Any, args: Sequence[Any], strangers: list[Tensor]) -> bool:
    """Whether CUDA's tensors meet these ones of the CPU in this operation."""
    if function in COPIES:
        return True
    if function in FILLING:
        return bool(args[1].dim() == 0)
    if function in INDEXING | INDEXED_WRITING:
        own, indices = isinstance(args[0], Pretend), [index for index in args[1] if index is not None]
        value = args[2] if function in INDEXED_WRITING else None
        is_near = value is None or value.dim() == 0 or isinstance(value, Pretend) == own
        return is_near and (own or not any(isinstance(index, Pretend) for index in indices))
    takes_numbers = function in MASKED_FILLING or torch.Tag.pointwise in function.tags
    writes_to_a_stranger = function._schema.name.endswith("_") and strangers[0] is args[0]
    return takes_numbers and not writes_to_a_stranger and all(tensor.dim() == 0 for tensor in strangers)


def is_here(where: Any) -> bool:
    return where is not None and torch.device(where).type == NAME


def check_generator(generator: torch.Generator | None, here: bool) -> None:
    """Raises RuntimeError where a generator is not of the device that is drawn on."""
    if generator is not None and (generator.initial_seed() in Generator.seeds) != here:
        wanted, found = (NAME, "cpu") if here else ("cpu", NAME)
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


class Generator(torch.Generator):
    """One of the CPU's. An operation is handed a bare copy, so those of the device are known by their seeds."""

    seeds: set[int] = set()
    is_here = False

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu" if is_here(device) else device)
        made.is_here = is_here(device)
        return made

    def manual_seed(self, seed: int) -> torch.Generator:
        (self.seeds.add if self.is_here else self.seeds.discard)(seed)
        return super().manual_seed(seed)


def install() -> None:
    """Registers the device with torch, and with the package; before the first backward pass, and for good."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore[assignment, misc]  # which no wrapper knows
    torch.Generator = Generator  # type: ignore[misc]
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, reaching(getattr(torch, name)))
    choose = device.choose
    device.choose = lambda name: torch.device(NAME, 0) if name == NAME else choose(name)


def reaching(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and torch.as_tensor, that they know the device too."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if not is_here(device):
            return make(data, device=device, **options)
        return (data if isinstance(data, Tensor) and not options else make(data, **options)).to(device)

    return made


def stay_in_host_memory() -> None:
    """From now on images stay on the CPU, and travel to the device a batch at a time."""
    move = ImageSet.to

    def to(images: ImageSet, where: torch.device | str) -> ImageSet:
        return replace(images, labels=images.labels.to(where)) if is_here(where) else move(images, where)

    ImageSet.to = to  # type: ignore[method-assign]


# ---- what runs on it ------------------------------------------------------------------------------------------------

WORDS = (
    "train.epochs=1", "train.precision=float32", "force=true", "rerun=true", f"runtime.device={NAME}", "runtime.progress=off",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What came of a name.

    operations  that the device carried out
    where       the lines of the package, or of a fault, that the error passed: `defenses/fst.py:66 purify`; the last is the one
    """

    name: str
    seconds: float
    operations: int
    error: str = ""
    where: tuple[str, ...] = ()


def run(row: contract.Row, outputs: Path, *words: str) -> None:
    """The row's quick run, whole: plan, infection, verdict, purified model, curve, record. And the training set rebuilt, where the
    attack can."""
    resolved = row.compose(f"runtime.outputs={outputs}", *WORDS, *words)
    job.carry_out(resolved)
    made = plan.plan(resolved)
    if made.attack.can_rebuild:
        infection, _ = infect.obtain(made, made.splits.test.to(made.device), Finding("infect", ""))
        purify.rebuilt(made, infection, Finding("purify", ""))


class Mask(Defense):
    """A planted fault: which images it keeps, it says on the CPU."""

    def purify(self, scenario: Scenario) -> nn.Module:
        labels = scenario.holdout.labels
        kept = torch.ones(len(labels), dtype=torch.bool)
        scenario.note("kept", int((kept & (labels > 0)).sum()))  # the fault
        return scenario.model


class Noise(Defense):
    """A planted fault: it draws on the device from a generator of the CPU's."""

    def purify(self, scenario: Scenario) -> nn.Module:
        generator = scenario.stream.generator()
        torch.rand(3, device=scenario.device, generator=generator)  # the fault
        return scenario.model


class Array(Defense):
    """A planted fault: it takes what lies on the device for an array."""

    def purify(self, scenario: Scenario) -> nn.Module:
        labels = scenario.holdout.labels
        scenario.note("first", int(labels.numpy()[0]))  # the fault
        return scenario.model


FAULTS: dict[str, type[Defense]] = {kind.__name__: kind for kind in (Mask, Noise, Array)}


def run_fault(kind: type[Defense], outputs: Path) -> None:
    """The default attack's infection, and the fault in the place of a defense."""
    made = plan.plan(compose([*QUICK, *WORDS, f"runtime.outputs={outputs}"]))
    test = made.splits.test.to(made.device)
    infection, _ = infect.obtain(made, test, Finding("infect", ""))
    purify.purify(replace(made, defense=kind(kind.__name__)), infection, test, Finding("purify", ""), lambda _: None)


def evaluate(expression: str) -> None:
    """The expression, of a tensor on the device and one on the CPU, with a row, a mask and a number of each."""
    there = torch.arange(6.0).view(3, 2)
    names: dict[str, Any] = {"torch": torch, "F": nn.functional, "numpy": numpy, "there": there}
    names |= {
        "row": torch.tensor([0]),
        "mask": there[:, 0] > 1,
        "number": torch.tensor(2.0),
        "drawn": torch.Generator(),
    }
    at = torch.device(NAME, 0)
    names |= {f"{name}_here": value.to(at) for name, value in names.items() if isinstance(value, Tensor)}
    eval(expression, names | {"here": there.to(at), "at": at, "drawn_here": torch.Generator(at).manual_seed(1)})


def report(name: str, outputs: Path) -> Report:
    """What comes of the row with its words, the fault, or the expression."""
    start, before = time.monotonic(), Backend.operations
    rows = {str(row): row for row in contract.rows()}
    first, *words = name.split()
    error: Exception | None = None
    try:
        if name.startswith("="):
            evaluate(name[1:])
        elif name in FAULTS:
            run_fault(FAULTS[name], outputs)
        else:
            run(rows[first], outputs, *words)
    except Exception as raised:
        error = raised
    seconds, operations = round(time.monotonic() - start, 1), Backend.operations - before
    if error is None:
        return Report(name, seconds, operations)
    return Report(name, seconds, operations, f"{type(error).__name__}: {error}", passed(error))


def passed(error: Exception) -> tuple[str, ...]:
    """The lines of the package, or of a fault, that an error passed on its way."""
    package, faults, found = Path(device.__file__).parent, {kind.__module__ for kind in FAULTS.values()}, []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(package):
            found.append(f"{file.relative_to(package)}:{line} {frame.f_code.co_name}")
        elif isinstance(frame.f_locals.get("self"), Defense) and frame.f_globals["__name__"] in faults:
            found.append(f"tests/{file.name}:{line} {frame.f_code.co_name}")
    return tuple(found)


def main() -> None:
    outputs, *options = sys.argv[1:]
    install()
    if "host" in options:
        stay_in_host_memory()
    torch.set_num_threads(1)
    with Pretending():
        for line in sys.stdin:
            print(json.dumps(asdict(report(line.strip(), Path(outputs)))), flush=True)


if __name__ == "__main__":
    main()
