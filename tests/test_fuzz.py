"""Whatever is typed ends in exit code 0, or in one paragraph and 2: commands drawn from every setting that there is, and planned.

python tests/test_fuzz.py 5000 7    so many, from another seed, all failures listed
"""

import contextlib
import io
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from backdoorbench.cli import hydra_run
from backdoorbench.cli.main import main
from backdoorbench.config import build, catalog, groups
from backdoorbench.config.compose import flat, option
from backdoorbench.data import archive
from backdoorbench.errors import BdxError
from backdoorbench.pipeline import plan
from backdoorbench.pipeline.switches import Switches
from backdoorbench.sweeps.sweep import leave

LONGEST = 20  # seconds of a processor that one command may plan
HUNG = 300  # seconds after which one that waits for something hangs
MOST_MEMORY = 3e9  # bytes that the process may grow by


# ---- what is typed --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A setting as it is typed, the choice that brings it (empty for one that every run has), and its value there."""

    name: str
    choice: str
    value: str


def written(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def keys_of_options() -> Iterator[Key]:
    """Every setting of every option, by the fields of the class that it names."""
    for group in groups.BUILT:
        for name in catalog.names(group):
            node = option(group, name)
            values = flat(node)
            for key in build.settings(build.target(node, group)):
                inner = [other for other in values if other == key or other.startswith(f"{key}.")]
                for full in inner or [key]:
                    yield Key(f"{group}.{full}", f"{group}={name}", written(values.get(full)))


def keys_of_switches() -> Iterator[Key]:
    """Every setting beside the groups' options."""
    for name, hint in get_type_hints(Switches).items():
        yield Key(name, "", "1")
        if is_dataclass(hint):
            yield from (Key(f"{name}.{inner}", "", "1") for inner in get_type_hints(hint))


KEYS = [*keys_of_options(), *keys_of_switches()]
GROUPS = [*groups.NAMES, "hydra/launcher", "hydra/sweeper", "hydra/job_logging"]
NUMBERS = (
    "inf", "-inf", "nan", "-nan", "0", "-0.0", "-1", "1", "2", "3", "0.5", "1.5", "1e-300", "1e300", "1e400", "-1e-5", "100", "100000",
    "2147483648", "9223372036854775807", "99999999999999999999", f"1{'0' * 400}", "0x10", "1_000", "1e", ".5", "5.", "+5", "007",
)  # fmt: skip
WORDS = (
    "", "null", "None", "true", "false", "yes", "''", '""', "' '", "a", "none", "auto", "é", "'é🙂'", "'a\0b'", "'a\nb'", "'\t'", "a/b",
    "../x", ".", "..", "/", "~", "'~'", "'~nobody/x'", "-", "--", "a b", "a:b", "a=b", "=", "a,", ",", "'a,b'", "a" * 300, "???", "'", '"',
    "\\", "${", "$", "%", "#", "@", "*", "(", ")", "[", "]", "{", "}", "\udcff",
)  # fmt: skip
CONTAINERS = (
    "[]",
    "[1]",
    "[1,2,3]",
    "[nan,0,0]",
    "[[1],[2]]",
    "[a,null]",
    "[1,",
    "{}",
    "{a:1}",
    "{a:{b:[1]}}",
    "{1:2}",
    "{a",
    "[${seed}]",
)
REFERENCES = (
    "${nope}", "${seed}", "${attack}", "${attack.target}", "${dataset.size}", "${dataset.nope}", "${train.lr}", "${oc.env:NOPE}",
    "${oc.env:HOME}", "${nope:1}", "${either:}", "${either:1,2}", "${either:${nope},2}", "${now:%Y}", "${hydra.job.num}", "${.name}",
    "${..seed}", "a${seed}", "${oc.select:nope}", "${oc.decode:nan}", "${}", "${a", "'${nope}'", "\\${seed}", "${oc.dict.keys:attack}",
)  # fmt: skip
SWEPT = (
    "0,1", "1,nan", "range(0,3)", "range(3)", "range(3,0)", "range(0,3,0)", "range(0,1,0.25)", "range(0,1e9)", "range(0,inf)", "choice(1,2)",
    "choice()", "interval(0,1)", "glob(*)", "glob(b*)", "shuffle(1,2)", "shuffle(range(0,3))", "sort(3,1,2)", "sort(range(0,3),reverse=true)",
    "tag(a,1)", "tag(a,choice(1,2))", "int(2.5)", "int(x)", "str(5)", "float(x)", "bool(2)", "json_str({a:1})", "extend_list(1,2)", "nope(1)",
    "[1],[2]", "{a:1},{a:2}", "null,1", "'a,b',c", "1,", ",1",
)  # fmt: skip
HYDRA = (
    "hydra.verbose=5", "hydra.verbose=nope", "hydra.sweep.dir=null", "hydra.sweep.dir=here", "hydra.sweep.subdir=x", "hydra.run.dir=text.txt",
    "hydra.job.name=null", "hydra.mode=nope", "hydra.callbacks=null", "hydra.callbacks.sweep=null", "hydra.searchpath=[nowhere]",
    "hydra.launcher.workers=0", "hydra.launcher=null", "hydra.sweeper.params=5", "hydra.sweeper.max_batch_size=0", "+hydra.job.env_copy=[NOPE]",
    "hydra.nope=1", "hydra=null", "~hydra", "hydra.sweeper._target_=os.system", "hydra/job_logging=none", "hydra.job_logging=5",
)  # fmt: skip
FLAGS = (
    "--cfg=job", "--cfg", "--resolve", "--package=attack", "--package=nope", "--info", "--config-dir=nowhere", "--config-dir=text.txt",
    "--config-name=x", "--config-path=x", "--nope", "-x", "-m", "--run", "--hydra-help", "-sc", "--experimental-rerun=x", "--", "-cd",
    "--plugin", "--plugin=nowhere", "--where=x",
)  # fmt: skip
VERBS = (
    "plan",
    "show",
    "show defense=fst",
    "list",
    "runs",
    "cache",
    "check",
    "report",
    "plot curves",
    "preview --images 0",
    "reproduce",
    "config",
    "cite",
    "new defense",
    "export model",
)

readable = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(WORDS[:12]), st.sampled_from(CONTAINERS[:-2]), st.sampled_from(REFERENCES[:16]),
    st.integers().map(str), st.floats().map(str), st.text(st.characters(codec="ascii", exclude_characters="'\\\\"), max_size=6).map("'{}'".format),
)  # fmt: skip
anything = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(CONTAINERS), st.sampled_from(REFERENCES), st.sampled_from(SWEPT), st.text(max_size=8),
)  # fmt: skip


@st.composite
def setting(draw: st.DrawFn, words: list[str]) -> str:
    """One setting, of an option that `words` choose where they choose one of its group; else of any, which they then choose."""
    key = draw(st.sampled_from(KEYS))
    group = key.choice.partition("=")[0]
    made = [word for word in words if word.startswith(f"{group}=")] if group else []
    if made and (same := [other for other in KEYS if other.choice == made[0]]):
        key = draw(st.sampled_from(same))
    elif group:
        words.append(key.choice)
    if draw(st.integers(0, 9)) < 8:  # a right name with a value that can be read
        return f"{key.name}={draw(st.just(key.value) | readable | readable | readable)}"
    prefix = draw(st.sampled_from(["", "+", "++", "~", "~~"]))
    suffix = draw(st.sampled_from(["", "", ".x", "x", "[0]", "@y", "."]))
    bare = prefix == "~" and draw(st.booleans())
    return f"{prefix}{key.name}{suffix}" + ("" if bare else f"={draw(anything | readable)}")


@st.composite
def choice(draw: st.DrawFn) -> str:
    """An option of a group, seldom one that there is not, or in another place."""
    group = draw(st.sampled_from(GROUPS))
    known = st.sampled_from(catalog.names(group) if group in groups.NAMES else ["none", "pool", "basic"])
    if draw(st.integers(0, 3)):
        return f"{group}={draw(known)}"
    package = draw(st.sampled_from(["", "@x", "@_global_", "@"]))
    return draw(st.sampled_from(["", "+", "++", "~"])) + f"{group}{package}={draw(known | anything)}"


@st.composite
def typed(draw: st.DrawFn) -> list[str]:
    """Words such as somebody might type after `bdx`: one to five odd settings, what brings them along, flags, a verb."""
    words = draw(
        st.sampled_from([[], [], ["dataset=folder", "dataset.root=tiny", "dataset.size=16", "holdout.rate=0.5"]])
    )[:]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.integers(0, 19))
        if kind == 0:
            words.append(draw(st.sampled_from(HYDRA)))
        elif kind == 1:
            words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(FLAGS)))
        elif kind < 5:
            words.append(draw(choice()))
        else:
            words.append(draw(setting(words)))
    roads = [[]] * 20 + [["-m"]] * 6 + [["plan"]] * 8 + [["--cfg", "job"]] + [verb.split() for verb in VERBS]
    road = draw(st.sampled_from(roads))
    if road in (["-m"], ["plan"]):
        words.append(f"seed={draw(st.sampled_from(SWEPT))}" if draw(st.booleans()) else "seed=0,1")
    return [*road, *words]


# ---- what becomes of it ---------------------------------------------------------------------------------------------


def planned(resolved: dict[str, Any]) -> SimpleNamespace:
    """Stands for a run: it is planned, and nothing is trained."""
    plan.plan(resolved)
    return SimpleNamespace(run=None)


def planned_job(resolve: Callable[[], dict[str, Any]], place: Path, overrides: Sequence[str]) -> None:
    """Likewise for a job of a sweep, which then counts as one that a mistake ended."""
    said = "it was planned only"
    try:
        plan.plan(resolve())
    except BdxError as error:
        said = str(error)
    leave(place, overrides, "failed", error=said, mistake=True)


def plant(place: Path) -> None:
    """A tiny data set in class folders, and a file."""
    for split, shade in (("train", 0), ("test", 100)):
        for label in ("a", "b"):
            (place / "tiny" / split / label).mkdir(parents=True)
            for index in range(4):
                colour = (shade + 10 * index + (3 if label == "b" else 0),) * 3
                Image.new("RGB", (16, 16), colour).save(place / "tiny" / split / label / f"{index}.png")
    (place / "text.txt").write_text("text")


@contextlib.contextmanager
def nothing_trains() -> Iterator[None]:
    """Runs are planned only, nothing is fetched, in a folder of one's own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        patch.chdir(place)
        patch.setattr(hydra_run, "carry_out_run", planned)
        patch.setattr(hydra_run, "carry_out_job", planned_job)
        patch.setattr(hydra_run, "objective", lambda run: None)
        patch.setattr(archive.Archive, "fetch", lambda *_: None)
        plant(Path(place))
        yield


def hung(*_: object) -> None:
    raise TimeoutError(f"nothing came of it in {LONGEST} s of a processor, or {HUNG} s")


def complaint(words: list[str]) -> str | None:
    """What is wrong with how `bdx <words>` ends; None where it ends as it should."""
    out, said = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGALRM, hung)
    signal.signal(signal.SIGVTALRM, hung)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
    signal.alarm(HUNG)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            code = main(words)
    except BaseException as error:
        last = "".join(traceback.format_exception(error)[-3:])
        return f"{type(error).__name__} of {words}: {last}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.alarm(0)
        torch.set_num_threads(1)
    text = said.getvalue()
    if code == 0:
        return None if "Traceback" not in text else f"a traceback of {words}: {text}"
    if code == 2 and text.startswith("bdx: ") and text.count("\n") == 1 and len(text) < 3000:
        return None
    if (
        code == 2 and not text and words[:1] != [] and {"plan", "-m", "check"} & set(words)
    ):  # what cannot be stands in a list
        return None
    return f"code {code} of {words}: {text or out.getvalue()[-300:]}"


def memory() -> float:
    """The most that this process has taken so far, in bytes."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


QUIET = {
    "database": None,
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


def fuzz(examples: int) -> None:
    """Plans so many commands; the first that ends badly fails, made as short as it still fails."""
    before = memory()

    @settings(max_examples=examples, **QUIET)  # type: ignore[arg-type]
    @given(typed())
    def ends_well(words: list[str]) -> None:
        assert complaint(words) is None, complaint(words)

    with nothing_trains():
        ends_well()
    assert memory() - before < MOST_MEMORY


@pytest.mark.wide
def test_whatever_is_typed_ends_in_success_or_a_paragraph() -> None:
    fuzz(15)


@pytest.mark.slow
def test_whatever_is_typed_ends_in_success_or_a_paragraph_five_hundred_times() -> None:
    fuzz(500)


VALUES: tuple[Any, ...] = (
    float("inf"), float("-inf"), float("nan"), -1, -0.5, 0, 0.5, 1, 7, 1e300, 1e-300, 2**62, 2**63, 10**400, "", "x", "a\0b", True, None, [],
    [1], [1, 2, 3], [float("nan")] * 3, {}, {"a": 1}, "x" * 300,
)  # fmt: skip


@pytest.mark.wide
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("group", groups.BUILT)
def test_any_value_of_any_setting_builds_or_is_refused_in_a_paragraph(group: str, every: int) -> None:
    """Quickly a third of the values, others at each setting."""
    first = itertools.count()
    for name in catalog.names(group):
        node = option(group, name)
        kind = build.target(node, group)
        for key, hint in build.settings(kind).items():
            inner = list(get_type_hints(hint)) if is_dataclass(hint) else [""]
            for part, value in itertools.product(inner, VALUES[next(first) % every :: every]):
                odd = {**node[key], part: value} if part else value
                try:
                    build.build({**node, key: odd}, group)
                except BdxError as error:
                    assert 0 < len(str(error)) < 1000, (name, key, value, error)


def by_hand(examples: int, number: int) -> None:
    """So many commands from the seed `number`: counts, and all that end badly."""
    found: Counter[str] = Counter()
    start = time.monotonic()

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(typed())
    def one(words: list[str]) -> None:
        said = complaint(words)
        found["wrong" if said else "right"] += 1
        if said:
            print(said, flush=True)
        if sum(found.values()) % 250 == 0:
            print(dict(found), f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    with nothing_trains():
        one()
    print(dict(found), f"{time.monotonic() - start:.0f} s, {memory() / 1e9:.1f} GB", file=sys.stderr)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    by_hand(int(sys.argv[1]), int(sys.argv[2]))
