"""What one GPU shows and two CPU cores cannot, in minutes: one step after another, the most telling first, until the time is up.

    python scripts/on_gpu.py --root DIR/cifar10 [--minutes 8] [--outputs DIR] [--only STEP,...] [--small]

The steps: the tests that need a GPU; Neural Cleanse's ten classes as one problem against one after another; training beside a
plain loop and the bare one; airbench infected and purified, three seeds; PreAct-ResNet-18 of the literature, infected and
purified by the five systems and their siblings. Each is a process of its own; what it prints lies in a file, and the table of
what ended how in DIR/on_gpu/on_gpu.md, written anew after each step, so that nothing is lost with the machine. A sweep that
the time cuts off goes on where it stopped when the same command is called again.
--small runs everything in a reduced size on the device that there is: a try of the script, whose figures mean nothing.
Exit code 1 where a step failed, was cut off, or was not begun.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SYSTEMS = "none,fst,fmp,aft,pbe,trap_and_replace,ft,ft_init,fe_tuning,anp,bnp,clp,ep,i_bau,ft_sam,nad"


@dataclass(frozen=True)
class Step:
    """name: of its file; seconds: at most; words: after `python`"""

    name: str
    seconds: int
    words: tuple[str, ...]


def steps(root: Path, outputs: Path, is_small: bool) -> Iterator[Step]:
    """All of them, in the order in which they run."""
    bdx = ("-m", "backdoorbench")
    shared = ("dataset=cifar10", f"dataset.root={root}", f"runtime.outputs={outputs}", "force=true", "curve.every=0")
    few = ("dataset.train_size=1000", "dataset.test_size=200", "train.epochs=1") if is_small else ()
    widths = ("model.width=8",) if is_small else ()
    images = "256" if is_small else "20000"
    classes = ("--units", "1", "--repeats", "1") if is_small else ("--depth", "18", "--width", "64", "--most", "0.3333")
    yield Step("tests", 120, ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"))
    yield Step("classes", 60, (str(HERE / "bench_detectors.py"), *classes))
    yield Step("train", 60, (str(HERE / "bench_train.py"), "--root", str(root), "--images", images, "--repeats", "1"))
    systems = "none,fst" if is_small else SYSTEMS
    seeds = "0" if is_small else "0,1,2"
    yield Step(
        "airbench", 150,
        (*bdx, "-m", *shared, *few, *widths, "model=airbench", "attack=badnets", f"seed={seeds}", "defense=fst", "control=train"),
    )  # fmt: skip
    yield Step(
        "preact", 400,
        (*bdx, "-m", *shared, *few, *widths, "model=preact_resnet18", "train=paper", "attack=badnets", f"defense={systems}"),
    )  # fmt: skip
    yield Step("report", 30, (*bdx, "report", str(outputs), "--metric", "ca,asr,ra,seconds,memory", "--format", "md"))


def carry_out(step: Step, seconds: float, folder: Path) -> tuple[str, float]:
    """How a step ended, and its seconds; what it prints goes to its file."""
    start = time.perf_counter()
    with (folder / f"{step.name}.txt").open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                [sys.executable, *step.words], cwd=HERE.parent, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
            said = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            said = "cut off"
    return said, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="CIFAR-10's folder")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="of the runs, and of what steps print")
    parser.add_argument("--only", help="names of steps, separated by commas")
    parser.add_argument("--small", action="store_true", help="a try of this script, on any device")
    chosen = parser.parse_args()
    import torch

    if not (torch.cuda.is_available() or chosen.small):
        parser.error("no CUDA device; expected one. Add --small to try this script without.")
    root, outputs = chosen.root.resolve(), chosen.outputs.resolve()
    known = list(steps(root, outputs, chosen.small))
    wanted = chosen.only.split(",") if chosen.only else [step.name for step in known]
    if strangers := set(wanted) - {step.name for step in known}:
        parser.error(
            f"--only names {', '.join(sorted(strangers))}; there are {', '.join(step.name for step in known)}."
        )
    (folder := outputs / "on_gpu").mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    end = time.perf_counter() + 60 * chosen.minutes
    lines = [f"{device}, torch {torch.__version__}", "", "| step | ended | seconds |", "| --- | --- | ---: |"]
    is_whole = True
    for step in known:
        if step.name not in wanted:
            continue
        left = min(step.seconds, end - time.perf_counter())
        said, took = carry_out(step, left, folder) if left > 5 else ("not begun", 0.0)
        is_whole &= said == "done"
        lines.append(f"| {step.name} | {said} | {took:.0f} |")
        (folder / "on_gpu.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
        print(lines[-1], flush=True)
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
