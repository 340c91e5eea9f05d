"""The GPU's path without a GPU: on a device that is pretended (pretend.py), every method finds all its tensors where they belong.

make test-pretend    every row of the contract, in a process of its own: with all images on the device, with the images in host
                     memory, with every other value of its settings; minutes
make test            one attack, one detector, one defense, and whether the device refuses what CUDA refuses; seconds
"""

import inspect
import json
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import contract
import pretend
import pytest

from backdoorbench.attacks.base import DataAttack
from backdoorbench.config import catalog
from backdoorbench.config.build import settings, target

LIMIT = 120  # seconds for a row; the slowest takes a tenth

pytestmark = pytest.mark.skipif(not pretend.POSSIBLE, reason="this version of torch takes no device from Python")

ALLOWED = (  # CPU and device meet, as on CUDA
    "here + 1", "here + number", "number * here", "here.add_(number)", "here.clamp(number, here)", "torch.where(here > 2, here, number)",
    "here.copy_(there)", "there.copy_(here)", "here.to('cpu') + there", "here.cpu() + there", "here[row]", "here[mask]",
    "here[row, 1].add_(1)", "here.__setitem__(mask, 0.0)", "here.__setitem__(mask, number)", "there.__setitem__(row, number_here)",
    "here.fill_(number)", "there.fill_(number_here)", "torch.rand(2, device=at, generator=drawn_here)", "torch.rand(2, generator=drawn)",
    "float(here.sum())", "here.tolist()", "torch.tensor([1], device=at) + row_here", "numpy.asarray(here.cpu())",
    "F.linear(here, here)", "here.new_zeros(2) + number_here",
)  # fmt: skip
REFUSED = (
    "here + there", "there + here", "there + number_here", "there.add_(here)", "number.add_(number_here)", "there.mul_(number_here)",
    "torch.cat([here, there])", "torch.stack([number_here, number])", "torch.equal(here, there)", "F.linear(here, there)",
    "here @ there.T", "here.index_select(0, row)", "there.index_select(0, row_here)", "here.gather(0, row[:, None])", "there[row_here]",
    "there[mask_here]", "here.masked_fill(mask[:, None], 0)", "here.__setitem__(mask, there[mask])", "there.__setitem__(row, here[row])",
    "torch.isin(here, there)", "F.one_hot(row_here) + F.one_hot(row)", "torch.rand(2, device=at, generator=drawn)",
    "torch.rand(2, generator=drawn_here)", "here.numpy()", "numpy.asarray(here)",
)  # fmt: skip


class Worker:
    """A process on the pretended device. It is asked by name, one after another, so that torch is imported once."""

    def __init__(self, outputs: Path, *options: str) -> None:
        self.log = outputs / "stderr.txt"
        words = [sys.executable, pretend.__file__, str(outputs), *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def report(self, name: str) -> pretend.Report:
        """What came of the row, fault or expression; the test fails where the process ends, or takes too long."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.poll() is None:
            print(name, file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], LIMIT)[0]:
            self.process.kill()
            pytest.fail(f"{name} did not end within {LIMIT} s on the pretended device; give its row quicker settings")
        if not (line := self.process.stdout.readline()):
            pytest.fail(f"the process ended at {name}:\n{self.log.read_text()[-2000:]}")
        found = json.loads(line)
        return pretend.Report(**found | {"where": tuple(found["where"])})


def started(outputs: Path, *options: str) -> Iterator[Worker]:
    made = Worker(outputs, *options)
    with made.process:
        yield made
        if made.process.stdin is not None:
            made.process.stdin.close()  # its end of work


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """All images lie on the device."""
    yield from started(tmp_path_factory.mktemp("pretend"))


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Images stay in host memory."""
    yield from started(tmp_path_factory.mktemp("pretend"), "host")


def assert_ends_well(worker: Worker, row: contract.Row) -> None:
    report = worker.report(str(row))
    assert not report.error, "\n".join([f"on the pretended device: {report.error}", *report.where])
    assert report.operations > 100  # it was there at all


def other_values(row: contract.Row) -> list[str]:
    """`defense.clamp=false`: a word for each value that a setting of few values could have and has not; those of all data
    poisoning aside."""
    node, shared, found = row.compose()[row.group], {field.name for field in fields(DataAttack)}, []
    for key, hint in settings(target(node, row.group)).items():
        values = (True, False) if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()
        found += [f"{row.group}.{key}={value}" for value in values if value != node[key] and key not in shared]
    return found


def one_a_class() -> list[contract.Row]:
    """Of rows whose yamls name the same class, the first."""
    named = {
        re.findall(r"^_target_: (.+)$", catalog.find(row.group, row.name).read_text(), re.M)[0]: row
        for row in contract.rows()[::-1]
    }
    return list(named.values())[::-1]


@pytest.mark.wide
@pytest.mark.parametrize("row", [row for row in contract.rows() if row.smoke], ids=str)
def test_a_row_of_each_kind(row: contract.Row, device: Worker) -> None:
    assert_ends_well(device, row)


@pytest.mark.pretend
@pytest.mark.parametrize("row", contract.rows(), ids=str)
def test_every_row(row: contract.Row, device: Worker) -> None:
    assert_ends_well(device, row)


@pytest.mark.pretend
@pytest.mark.parametrize("row", contract.rows(), ids=str)
def test_every_row_with_images_in_host_memory(row: contract.Row, host: Worker) -> None:
    assert_ends_well(host, row)


@pytest.mark.pretend
@pytest.mark.parametrize("row", one_a_class(), ids=str)
def test_every_other_value_of_a_setting(row: contract.Row, device: Worker) -> None:
    for word in other_values(row):
        report = device.report(f"{row} {word}")
        # beside the others it makes no sense, or switches one of them off
        refused = report.error.startswith(("ConfigError", "IdleError", "PairingError"))
        assert refused or not report.error, "\n".join([f"with {word}: {report.error}", *report.where])


SAID = {
    "Mask": "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, pretend:0 and cpu!",
    "Noise": "RuntimeError: Expected a 'pretend' device type for generator but found 'cpu'",
    "Array": "TypeError: can't convert pretend:0 device type tensor to numpy. Use Tensor.cpu() first.",
}


@pytest.mark.wide
@pytest.mark.parametrize("name", pretend.FAULTS)
def test_a_planted_fault_is_caught_and_its_line_is_named(name: str, device: Worker) -> None:
    report = device.report(name)
    assert report.error.startswith(SAID[name])
    lines, first = inspect.getsourcelines(pretend.FAULTS[name])
    fault = next(number for number, line in enumerate(lines, first) if line.endswith("# the fault\n"))
    assert report.where[-1] == f"tests/pretend.py:{fault} purify"


def test_it_takes_what_cuda_takes(device: Worker) -> None:
    reports = [device.report(f"={expression}") for expression in ALLOWED]
    assert not [report for report in reports if report.error]


def test_it_refuses_what_cuda_refuses(device: Worker) -> None:
    said = ("on the same device", "device type for generator", "to numpy")
    reports = [device.report(f"={expression}") for expression in REFUSED]
    assert not [report for report in reports if not any(words in report.error for words in said)]
