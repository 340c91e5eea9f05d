"""How soon a network of 90 % CA stands on lossless CIFAR-10 with BadNets 10 %: one training against others, in one run.

    python scripts/bench_regime.py --root DIR/cifar10 [--ca 90] [--times 8] [--threads 2] [--repeats 3] [--outputs DIR]
        [--training "model=airbench" 4,5,6 --training "model=preact_resnet18 train=fast" 5,10,12]

The first training is what the others are compared with. Each is given as the words that choose it, and the numbers of epochs to
try, in this order, until one ends at that CA: a rate that falls to nothing gets at the end of its schedule where it can, so the
shortest schedule that does is as soon as it gets there. These are usual runs on all images, kept in --outputs, so that the script
goes on where it was stopped. What they took is not what is compared, since hours may lie between them: images a second are
measured side by side, the trainings in turn, each time in a new process, over the second epoch on 4,096 images; medians.

A training of which no schedule got there takes longer than its longest: its ratio is a lower bound. Exit code 1 where one is
below --times.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from backdoorbench import api, device

IMAGES = 4312  # of which 4,096 train
USUAL = [("model=airbench", "4,5,6"), ("model=preact_resnet18 train=fast", "5,10,12")]


@dataclass
class Training:
    """One of those compared.

    words      that choose it
    schedules  numbers of epochs to try
    rates      images a second, one of each repeat
    tried      (epochs, CA, ASR) of each schedule that was tried, the last of them the longest
    images     that an epoch has"""

    words: list[str]
    schedules: list[int]
    rates: list[float]
    tried: list[tuple[int, float, float]]
    images: int = 0

    @property
    def seconds(self) -> float:
        """Of the longest schedule that was tried."""
        return self.tried[-1][0] * self.images / statistics.median(self.rates)

    def has(self, ca: float) -> bool:
        return self.tried[-1][1] >= ca


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10's folder")
    parser.add_argument("--ca", type=float, default=90.0, help="percent")
    parser.add_argument("--times", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--outputs", default="outputs")
    parser.add_argument("--training", nargs=2, action="append", metavar=("WORDS", "EPOCHS"))
    chosen = parser.parse_args()
    usual = [
        "dataset=cifar10", f"dataset.root={Path(chosen.root).resolve()}", "attack=badnets", "attack.poison_rate=0.1",
        "defense=none", f"runtime.threads={chosen.threads}", "force=true",
    ]  # fmt: skip
    trainings = [
        Training(words.split(), [int(each) for each in epochs.split(",")], [], [])
        for words, epochs in chosen.training or USUAL
    ]
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(chosen.repeats):
            for training in trainings:
                training.rates.append(rate([*usual, *training.words, f"seed={repeat}"], Path(folder)))
    for training in trainings:
        train([*usual, *training.words, f"runtime.outputs={chosen.outputs}"], training, chosen.ca)
    return report(trainings, chosen)


def rate(words: list[str], folder: Path) -> float:
    """Images a second of a training in a process of its own."""
    short = [f"dataset.train_size={IMAGES}", "dataset.test_size=100", "train.epochs=2", "train.lr=0.001", "control=off"]
    runs = folder / "runs"
    before = set(runs.glob("*"))
    command = [sys.executable, "-m", "backdoorbench", *words, *short, f"runtime.outputs={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (made,) = set(runs.glob("*")) - before
    record = json.loads((made / "record.json").read_text())
    return float(record["stages"][0]["history"][-1]["images_per_second"])


def train(words: list[str], training: Training, ca: float) -> None:
    """Runs its schedules until one ends at the CA."""
    for epochs in training.schedules:
        run = api.run(*words, f"train.epochs={epochs}")
        scores = run.infection.scores
        assert scores is not None and scores.asr is not None
        training.images = int(run.infection.notes["train"])
        training.tried.append((epochs, 100 * scores.ca, 100 * scores.asr))
        if training.has(ca):
            return


def report(trainings: list[Training], chosen: argparse.Namespace) -> int:
    print(
        f"time to a CA of {chosen.ca:g} %, {chosen.threads} threads, torch {torch.__version__}, "
        f"{device.describe(torch.device('cpu'))}"
    )
    for training in trainings:
        for epochs, ca, asr in training.tried:
            print(f"{' '.join(training.words):<40} {epochs:3} epochs   CA {ca:5.2f}   ASR {asr:5.2f}")
        speed = statistics.median(training.rates)
        spread = f"{min(training.rates):.0f} to {max(training.rates):.0f}"
        more = "" if training.has(chosen.ca) else "more than "
        print(f"{'':<40} {speed:.0f} images/s ({spread}): {more}{training.seconds / 60:.1f} minutes")
    first, *others = trainings
    if not first.has(chosen.ca):
        print(f"{' '.join(first.words)} did not get there, so there is nothing to compare")
        return 1
    ratios = [other.seconds / first.seconds for other in others]
    for other, ratio in zip(others, ratios, strict=True):
        bound = "" if other.has(chosen.ca) else "more than "
        print(f"{' '.join(first.words)} is there {bound}{ratio:.1f} times sooner than {' '.join(other.words)}")
    return 0 if min(ratios, default=chosen.times) >= chosen.times else 1


if __name__ == "__main__":
    sys.exit(main())
