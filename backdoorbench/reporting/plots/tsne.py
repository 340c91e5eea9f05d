"""What one run's classifier reads, laid out in a plane, before and after its defense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import style
from matplotlib.figure import Figure

from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.rows import heading, percent

if TYPE_CHECKING:
    from backdoorbench.reporting.features import Embedding
    from backdoorbench.storage.record import Run


@style.context(ink.STYLE)
def tsne(run: Run, embedding: Embedding) -> Figure:
    """What the classifier reads, in two dimensions, before and after the defense: clean images, those of the target's class
    apart, and triggered ones. Distances between groups mean nothing; whether triggered images lie among the target's does."""
    figure = Figure(figsize=(ink.WIDTH * 2 + ink.LEGEND, ink.WIDTH + 0.7), layout="constrained")
    ink.head(figure, heading(run), 2)
    looks: dict[str, dict[str, Any]] = {
        "clean, other classes": {"color": "#999999", "marker": ".", "markersize": 4},
        "clean, target class": {"color": ink.COLOURS[0], "marker": "s", "markersize": 3.5},
        "triggered": {"color": ink.COLOURS[1], "marker": "x", "markersize": 4.5},
    }
    places = ((INFECT, embedding.before), (PURIFY, embedding.after))
    for axes, (stage, points) in zip(figure.subplots(1, 2), places, strict=True):
        for kind, look in enumerate(looks.values()):
            chosen = points[embedding.kinds == kind]
            axes.plot(chosen[:, 0], chosen[:, 1], linestyle="none", **look)
        scores = run.of(stage.name).scores
        figures = f": CA {percent(scores.ca)}, ASR {percent(scores.asr)}" if scores else ""
        axes.set_title(stage.model + figures, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
    counts = [int((embedding.kinds == kind).sum()) for kind in range(3)]
    kept = {f"{name} ({count})": look for (name, look), count in zip(looks.items(), counts, strict=True) if count}
    said = [
        "t-SNE of what the classifier reads, each model by itself; test images.",
        "Distances between groups mean nothing.",
    ]
    named = {name: look | {"linestyle": "none"} for name, look in kept.items()}
    ink.finish(figure, named, [*said, *panels.doubts([run])])
    return figure
