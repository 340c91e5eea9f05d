"""The last stage: an attacker who wants his backdoor back, given what he knows, and what becomes of test images then.

The same is done to two controls: a clean model of the same recipe, and exact purification, an oracle that was tuned on triggered
images with their true labels. Only what goes beyond them counts. What controls answer does not depend on the defense, so it is
kept in the cache.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from backdoorbench import device, metrics, progress
from backdoorbench.after.base import AfterAttack, Scenario, Trial, painted
from backdoorbench.attacks.base import Infection
from backdoorbench.config.groups import AFTER, INFECT, PURIFY
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ModelError, first_line
from backdoorbench.models import checkpoint
from backdoorbench.pipeline import evaluation
from backdoorbench.pipeline.costs import metered
from backdoorbench.pipeline.infect import fresh_network, obtain
from backdoorbench.pipeline.infections import WEIGHTS, description
from backdoorbench.pipeline.plan import Plan, batch_sizes, clean_plan, has_clean_model
from backdoorbench.storage import store
from backdoorbench.storage.record import Finding, Run
from backdoorbench.streams import Stream

STARTED = time.time()  # a rerun makes the exact purification again, but this process does so once
Judged = dict[str, Any]  # of a trial: its label, and ca, asr, ra and untriggered as far as they were asked for
CLEAN, EXACT = "clean", "exact"  # the controls, as figures end
PURIFIED = f"{PURIFY.model}.safetensors"  # in a run's folder


@dataclass(frozen=True)
class Stage:
    """What all models of a run are attacked with, and judged on.

    clean   the clean control, where there is one
    train   the attacker's own images
    test    the test images that trials are judged on"""

    made: Plan
    infection: Infection
    clean: nn.Module | None
    train: ImageSet
    test: ImageSet

    def trials(self, model: nn.Module, note: Callable[[str, Any], None]) -> Iterator[Trial]:
        """Those of the after-attack on its own copy of a model."""
        made, infection = self.made, self.infection
        assert infection.trigger is not None and infection.target is not None
        scenario = Scenario(
            made.after.needs,
            model=copy.deepcopy(model),
            infected=copy.deepcopy(infection.model),
            clean=copy.deepcopy(self.clean),
            trigger=infection.trigger,
            target=infection.target,
            train=self.train,
            load=lambda folder: purified_elsewhere(made, folder),
            recipe=made.recipe,
            stream=made.stream.child("after"),
            device=made.device,
            note=note,
        )
        return made.after.trials(scenario)

    def judge(self, trial: Trial, model: nn.Module) -> Judged:
        """What becomes of test images in a trial, shown to the trial's model, or to another."""
        test, target, precision = self.test, self.infection.target, self.made.recipe.precision
        assert target is not None
        true = test.labels.cpu()
        eligible = target.is_eligible(true)
        meant = test.subset(eligible.nonzero()[:, 0])  # whatever is shown with a trigger
        wanted = target.label(true)[eligible]
        calls = evaluation.called(model, meant, trial.trigger, precision)
        lured = evaluation.called(model, meant, trial.lure, precision) if trial.lure else None
        return {
            "label": trial.label,
            "ca": metrics.accuracy(evaluation.called(model, test, None, precision), true) if trial.is_moved else None,
            "asr": metrics.accuracy(calls, wanted),
            "ra": metrics.accuracy(calls, true[eligible]),
            "untriggered": metrics.accuracy(lured, wanted) if lured is not None else None,
        }


def carry_out(made: Plan, infection: Infection, purified: nn.Module, test: ImageSet, run: Run) -> None:
    """Attacks the purified model, and the controls; the finding in the run."""
    finding = run.begin(AFTER.name, made.after.name)
    with finding.timed("controls"):
        stage = prepare(made, infection, test)
        exact = obtain_exact(made, infection, test) if made.parts.holdout is not None and made.exact.epochs else None
    clean = stage.clean
    is_shown = clean is not None and made.after.on_clean == "shown"
    found: dict[str, list[Judged]] = {PURIFY.model: [], **({CLEAN: []} if is_shown else {})}
    with (
        metered(finding, made.device),
        finding.timed("after"),
        device.memory_errors("after", batch_sizes(made, AFTER.group)),
        progress.aside(made.after.name, made.after.count(), "trial") as work,
    ):
        for trial in stage.trials(purified, finding.notes.__setitem__):
            found[PURIFY.model].append(stage.judge(trial, trial.model))
            if clean is not None and is_shown:
                found[CLEAN].append(stage.judge(trial, clean))
            work.advance()
    with finding.timed("controls"):
        if clean is not None and not is_shown:
            found[CLEAN] = obtain_answers(stage, CLEAN, clean, clean_plan(made).infection_key)
        if exact is not None:
            found[EXACT] = obtain_answers(stage, EXACT, exact.model, exact.key)
    finding.figures = figures(made.after, found)
    if exact is not None:
        finding.figures |= {f"ca_{EXACT}": exact.ca, f"asr_{EXACT}": exact.asr}
    if run.infection.control is not None:
        finding.figures[f"asr_{CLEAN}"] = run.infection.control.asr
    finding.details |= {
        "figure": made.after.figure,
        "counts": made.after.counts,
        "images": len(stage.test),
        "trials": found,
    }


def prepare(made: Plan, infection: Infection, test: ImageSet) -> Stage:
    """What the after-attack of a plan works with; the clean model cached, or trained."""
    clean = obtain_clean(made, test) if has_clean_model(made) else None
    rows, most = made.parts.test_rows, made.after.most_images()
    if most is not None:
        rows = evaluation.few(test, rows, most, infection.target, made.stream.child("judged"))
    return Stage(made, infection, clean, made.parts.train.to(made.device), test.subset(rows))


def figures(after: AfterAttack, found: Mapping[str, Sequence[Judged]]) -> dict[str, float | None]:
    """What tables show: asr_retuned, of controls asr_retuned_clean and asr_retuned_exact; ca_retuned where the model is another
    afterwards; asr_retuned_untriggered where clean images are lured, too."""
    name, own = after.figure, found[PURIFY.model]
    told: dict[str, float | None] = {}
    for model, trials in found.items():
        end = "" if model == PURIFY.model else f"_{model}"
        told[f"asr_{name}{end}"] = in_one([trial["asr"] for trial in trials], after.counts)
    if after.counts == "only":
        told[f"ca_{name}"], told[f"asr_{name}_untriggered"] = own[0]["ca"], own[0]["untriggered"]
    return {figure: value for figure, value in told.items() if value is not None}


def in_one(shares: Sequence[float], counts: str) -> float:
    """The ASR of several trials as one."""
    if counts == "mean":
        return statistics.fmean(shares)
    return max(shares[1:]) if counts == "largest" else shares[0]


# ---- controls -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exactly:
    """The infected model after exact purification, and what it makes of the test images."""

    key: str
    model: nn.Module
    ca: float
    asr: float | None


def obtain_clean(made: Plan, test: ImageSet) -> nn.Module:
    """The clean model of the same recipe: cached, or trained."""
    clean = clean_plan(made)
    return obtain(clean, test, Finding(INFECT.name, clean.attack.name))[0].model


def obtain_exact(made: Plan, infection: Infection, test: ImageSet) -> Exactly:
    """The infected model, tuned by the oracle: from the cache, or into it."""
    names = ("exact", "holdout", "seed")
    settings = {"model": made.infection_settings, **{name: made.settings[name] for name in names}}
    key = store.key("exact", settings)
    folder, holdout = made.outputs.exact(key), made.parts.holdout
    assert holdout is not None and infection.trigger is not None
    if made.config["rerun"]:
        store.discard(folder, before=STARTED)
    clean, trigger = holdout.to(made.device), infection.trigger

    def make(partial: Path) -> None:
        model = copy.deepcopy(infection.model)
        with device.memory_errors("after", {"exact.batch_size": made.exact.batch_size}):
            made.exact.purify(model, clean, painted(clean, trigger), made.recipe.precision, made.stream.child("exact"))
        calls = evaluation.predict(model, test, trigger, made.recipe.precision)
        scores = evaluation.judge(calls, test, infection.target, made.parts.test_rows)
        checkpoint.save(model, partial / WEIGHTS)
        store.write_json(partial / "exact.json", {"settings": settings, "ca": scores.ca, "asr": scores.asr})

    def read(folder: Path) -> Exactly:
        with store.reading(folder):
            model, told = fresh_network(made, Stream(0)), description(folder, "exact.json")
            checkpoint.restore(model, folder / WEIGHTS)
            return Exactly(key, model.eval(), told["ca"], told["asr"])

    waiting = f"another process makes the exact purification of this infection ({key}); waiting for it"
    return store.obtain(folder, make, read, waiting)[0]


def obtain_answers(stage: Stage, control: str, model: nn.Module, key: str) -> list[Judged]:
    """What becomes of test images after the same attack on a control, which no defense bears on: known already, or found out.

    key  of the control's own making"""
    made = stage.made
    names = ("after", "holdout", "seed")
    settings = {"control": key, "infection": made.infection_settings, **{name: made.settings[name] for name in names}}
    if "clean" in made.after.needs:
        settings["clean"] = clean_plan(made).infection_settings
    answers = made.outputs.after(control, store.key("after", settings))
    known = store.read_answer(answers, ("trials",)) if not made.config["rerun"] else None
    if known is None:
        known = {"trials": list(judged(stage, control, model))}
        with store.storage_errors(answers.parent):
            answers.parent.mkdir(parents=True, exist_ok=True)
        store.write_answer(answers, known)
    trials: list[Judged] = known["trials"]
    return trials


def judged(stage: Stage, control: str, model: nn.Module) -> Iterator[Judged]:
    """What becomes of test images in each trial on a control."""
    after = stage.made.after
    with progress.aside(f"{after.name} on {control}", after.count(), "trial") as work:
        for trial in stage.trials(model, lambda name, value: None):
            yield stage.judge(trial, trial.model)
            work.advance()


def purified_elsewhere(made: Plan, folder: str) -> nn.Module:
    """The purified model of another run, whose network is this run's."""
    place = Path(folder).expanduser() / PURIFIED
    model = fresh_network(made, Stream(0))
    try:
        checkpoint.reshape(model, checkpoint.description(place) or {}, made.config["plugins"])
        checkpoint.restore(model, place)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{place} is no {PURIFY.model} model that fits {made.spec.name} ({first_line(error)}); expected the folder of a run "
            f"with the same network and data set, such as outputs/runs/NAME. Name another."
        ) from None
    return model.eval()
