"""Runs as reports read them, made by hand: a finding a stage."""

from collections.abc import Mapping
from typing import Any

from backdoorbench.config.compose import Plain
from backdoorbench.metrics import Scores
from backdoorbench.storage.record import Finding, Run


def made_run(
    id: str,
    config: Plain,
    infected: Scores | None,
    purified: Scores | None,
    infection: str = "took",
    figures: Mapping[str, float | None] | None = None,
    beside: Mapping[str, float | None] | None = None,
    status: str = "done",
    **more: Any,
) -> Run:
    """A run of these scores.

    infection  its status
    figures    of the detector that the configuration names, on the infected model; beside: on the clean one"""
    infect = Finding("infect", config["attack"]["name"], status=infection, scores=infected)
    purify = Finding("purify", config["defense"]["name"], scores=purified, details={"starts_from": "infected"})
    detect = []
    if figures is not None:
        detect = [Finding("detect", config["detector"]["name"], figures=dict(figures), beside=dict(beside or {}))]
    return Run(id, status, "", config, [infect, *detect, purify], **more)


def old_record(given: Run, **changes: Any) -> dict[str, Any]:
    """The record that this run had before there were stages, and before some settings were there to choose."""
    config = {name: value for name, value in given.config.items() if name not in ("detector", "inspection")}
    dataset = {name: value for name, value in config["dataset"].items() if name not in ("target", "tuning")}
    before, after = given.infection, given.purification
    return {
        "id": given.id, "status": given.status, "label": "", "config": config | {"dataset": dataset},
        "infected": vars(before.scores), "purified": vars(after.scores), "control": None,
        "infection": {"key": "0123456789ab", "cached": True, "seconds": {"infect": 9.0}, "status": before.status, "reasons": [],
                      "facts": {"poisoned": 137}, "history": [], "target": "target 0"},
        "details": {"infected": {}, "purified": after.details}, "curve": [], "notes": {}, "seconds": {"infect": 9.0, "purify": 1.0},
        "environment": given.environment, "started": "", "error": None,
    } | changes  # fmt: skip
