"""Figures: what a page shows as a chart, with all that stands around it: caption, description, data table, drawing.

A drawing is made only when its file is stale, so it is a function to be called, not yet a chart. Captions say what
to see, from the figures themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import numpy as np

from vsp_report.recording import Clustering, ControlDraws, Recording, Steered, Swept
from vsp_report.render import charts
from vsp_report.render.arms import rounds_of
from vsp_report.render.findings import (
    CONTROL_KINDS,
    base_of,
    change_of,
    changes_of,
    contrast_of,
    counted,
    edits_words,
    headline_steering,
    number,
    p_value,
    rebuilt,
    share,
    tone,
    turns,
)

TABLE_ROWS = 60
"""Longer tables are cut on the page; the CSV has all rows."""


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """text, numbers, or None"""

    def columns(self) -> list[tuple[str, bool]]:
        """The names, and whether numbers stand under them."""
        return [(name, _numeric([row[i] for row in self.rows])) for i, name in enumerate(self.head)]

    def cells(self) -> list[list[tuple[str, bool]]]:
        """As they are shown, and whether they are numbers; the first rows of a long table. The numbers of a column
        have the same digits."""
        shown = self.rows[:TABLE_ROWS]
        digits = [_digits([row[i] for row in shown]) for i in range(len(self.head))]
        numeric = [numbers for _, numbers in self.columns()]
        return [[(_cell(value, digits[i]), numeric[i]) for i, value in enumerate(row)] for row in shown]

    @property
    def left_out(self) -> int:
        return max(0, len(self.rows) - TABLE_ROWS)


def _numeric(column: list[Any]) -> bool:
    there = [value for value in column if value is not None]
    return bool(there) and all(isinstance(value, (int, float)) for value in there)


def _digits(column: list[Any]) -> int | None:
    """How many behind the point, so that the largest has three; None where a short form says all of each."""
    found = [abs(value) for value in column if isinstance(value, float)]
    if all(len(f"{value:g}") <= 3 for value in found):
        return None
    largest = max(found)
    return min(4, max(0, 2 - math.floor(math.log10(largest)))) if 0 < largest < math.inf else 2


def _cell(value: Any, digits: int | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or digits is None:
        return f"{value:g}".replace("-", "−") if isinstance(value, float) else str(value).replace("-", "−")
    text = f"{value:.{digits}f}"
    # What rounds to zero and is none says how small it is.
    text = f"{value:.2g}" if value and not float(text) else text
    return text.replace("-", "−")


@dataclass(frozen=True)
class Figure:
    id: str
    """also the name of its files"""
    alt: str
    caption: str
    table: Table
    draw: Callable[[], alt.TopLevelMixin]


def figures_of(recording: Recording) -> dict[str, Figure]:
    """Every chart that this recording has figures for, by id."""
    found: list[Figure] = []
    best = headline_steering(recording)
    ordered = sorted(recording.steered, key=lambda one: one is not best)
    found += [_controls(recording, one, i) for i, one in enumerate(ordered) if one.change is not None and _drawn(one)]
    found += [_rounds(recording, rounds, i) for i, rounds in enumerate(rounds_of(recording)) if _measured(rounds)]
    found += [_dose(recording, swept, i) for i, swept in enumerate(recording.swept) if contrast_of(recording)]
    if recording.heatmap is not None and recording.arrays.heatmap_TL is not None and recording.heatmap.clusterings:
        found.append(_heatmap(recording))
    if sum(a.measured is not None for a in recording.attributions) > 1:
        found.append(_attribution(recording))
    if recording.classified is not None and recording.classified.scores:
        found.append(_classes(recording))
    return {figure.id: figure for figure in found}


def _id(kind: str, place: int, name: str) -> str:
    """A name for files: of a name that was recorded, only letters and digits."""
    return "-".join(filter(None, (kind, str(place), re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-"))))


# --- steering --------------------------------------------------------------------------------------------------------


_KINDS = {"latents": "draws of other latents", "directions": "random directions", "untrained": "draws of an untrained "
          "SAE"}  # fmt: skip


def _drawn(steered: Steered) -> list[Any]:
    return [draws for draws in steered.controls if draws.changes]


def _controls(recording: Recording, steered: Steered, place: int) -> Figure:
    controls = [replace(draws, changes=changes_of(steered, draws)) for draws in _drawn(steered)]
    change = change_of(steered)
    said = [
        f"{number(min(d.changes), 1, True)} to {number(max(d.changes), 1, True)} ({len(d.changes)} "
        f"{_KINDS[d.kind]}{_activity(d)}{f', p = {p_value(d.p)}' if d.p is not None else ''})"
        for d in controls
    ]
    moved = number(change, 1, True)
    ranges = "; ".join(said) + "."
    rows = [(CONTROL_KINDS[d.kind], n, far) for d in controls for n, far in enumerate(d.changes, 1)]
    rows = [(f"{steered.name} itself", 0, change), *rows]
    also = _flipping(controls)
    description = f"Histogram of the changes that matched controls make; {steered.name} makes {moved}. {ranges}"
    contrast = contrast_of(recording) or ("right", "wrong")
    against = ", against the model through the SAE with nothing edited" if rebuilt(steered) else ""
    return Figure(
        _id("controls", place, steered.name),
        description,
        f"How far “{steered.name}” moves the log-odds (line, {moved}), and how far its matched controls (grey) do"
        f"{against}: {ranges}{also}",
        Table(("arm", "draw", "change of the log-odds"), tuple(rows)),
        lambda: charts.control_histogram(change, controls, description, contrast),
    )


def _activity(draws: ControlDraws) -> str:
    """How good a match they are: where a case takes the most active latents, all others are less active."""
    return "" if draws.mass_ratio is None else f", {draws.mass_ratio:.2g} times as active"


def _flipping(controls: Sequence[ControlDraws]) -> str:
    """How many take the log-odds over zero. What is said then was not asked."""
    flips = {CONTROL_KINDS[d.kind]: d.flips for d in controls if d.flips is not None}
    if not flips:
        return ""
    if not any(flips.values()):
        return " None of them takes the log-odds to the other side of zero."
    if len(flips) > 1 and len(set(flips.values())) == 1:
        return f" Of each kind, {share(next(iter(flips.values())))} take the log-odds to the other side of zero."
    some = [f"{share(of)} ({kind})" for kind, of in flips.items() if of]
    return f" The log-odds go to the other side of zero with {' and '.join(some)} of them."


def _measured(rounds: Sequence[Steered]) -> bool:
    return all(one.after.margin is not None for one in rounds)


def _rounds(recording: Recording, rounds: tuple[Steered, ...], place: int) -> Figure:
    contrast, base = contrast_of(recording), base_of(recording, rounds[0])
    begins = "through the SAE, nothing edited" if rebuilt(rounds[0]) else "the model as it is"
    stages = [("0", begins, base)] if base is not None else []
    stages += [(str(n), edits_words(one, named=False), one.after) for n, one in enumerate(rounds, 1)]
    # From a round of the model as it is to one of the SAE's reconstruction, the SAE's own error moves something too.
    bases = [base, *(base_of(recording, one) for one in rounds)][-len(stages) :]
    rows, before = [], None
    for at, (name, does, answered) in enumerate(stages):
        alike = at and bases[at] is bases[at - 1]
        moved = answered.margin - before if alike and None not in (answered.margin, before) else None
        rows.append((name, does, answered.text.strip(), answered.margin, moved))
        before = answered.margin
    said = _turning(recording, rounds)
    description = f"Log-odds after each of {counted(len(rounds), 'round')} of steering. {said}"
    drawn = [{"round": row[0], "does": row[1], "answer": row[2][:60], "margin": row[3],
              "side": "right" if row[3] > 0 else "wrong", "says": tone(stage[2], contrast) or "neither"}
             for row, stage in zip(rows, stages, strict=True) if row[3] is not None]  # fmt: skip
    return Figure(
        _id("rounds", place, rounds[-1].name),
        description,
        f"Round by round: each edits on top of the one before. {said}",
        Table(("round", "edit", "answer", "log-odds", "change in this round"), tuple(rows)),
        lambda: charts.rounds(drawn, contrast or ("right", "wrong"), description),
    )


def _turning(recording: Recording, rounds: Sequence[Steered]) -> str:
    """In which round the edits bring another of the two answers."""
    contrast = contrast_of(recording) or ("", "")
    was = tone(base_of(recording, rounds[0]), contrast)
    for n, one in enumerate(rounds, 1):
        if turns(recording, one) and tone(one.after, contrast) not in ("", tone(base_of(recording, one), contrast)):
            return f"The answer turns in round {n}."
    right, wrong = (f"“{name}”" for name in contrast)
    other = {"right": wrong, "wrong": right}.get(was, f"{right} or {wrong}")
    return f"No round turns the answer to {other}."


def _dose(recording: Recording, swept: Swept, place: int) -> Figure:
    contrast = contrast_of(recording)
    rows = [(dose.factor, dose.answered.text, dose.answered.margin, dose.answered.p_right) for dose in swept.doses]
    turn = swept.flip_factor
    margins = [dose.answered.margin for dose in swept.doses if dose.answered.margin is not None]
    stay = "The log-odds stay on one side of zero." if len(margins) == len(swept.doses) else ""
    said = stay if turn is None else f"The log-odds cross zero at about {turn:.2g} times their strength."
    span = f" from {number(min(margins), 1, True)} to {number(max(margins), 1, True)}" if margins else ""
    description = f"Line of the log-odds over the strength of the latents of {swept.of}{span}. {said}"
    return Figure(
        _id("dose", place, swept.of),
        description,
        f"Dose and response: the latents of “{swept.of}” at several strengths (not compared with controls). "
        f"{said}".rstrip(),
        Table(("strength", "answer", "log-odds", "p of the right answer"), tuple(rows)),
        lambda: charts.dose_response(swept, contrast, description),
    )


# --- concepts --------------------------------------------------------------------------------------------------------


def normalised(values_TL: np.ndarray, how: str) -> np.ndarray:
    """Scaled to the largest value of all, of its row, or of its column. The page's script does the same."""
    axis = {"row": 1, "column": 0}.get(how)
    largest = values_TL.max(axis=axis, keepdims=True, initial=0)
    return np.divide(values_TL, largest, out=np.zeros_like(values_TL, dtype=float), where=largest > 0)


def cluster_name(clustering: Clustering, cluster: int) -> str:
    name = clustering.names[cluster] if cluster < len(clustering.names) else ""
    return f"{cluster} {name}".strip()


def cluster_names(recording: Recording) -> tuple[str, ...]:
    """Of the grouping that the page opens with."""
    heat = recording.heatmap
    if heat is None or not heat.clusterings or recording.arrays.heatmap_TL is None:
        return ()
    first = heat.clusterings[0]
    return tuple(cluster_name(first, cluster) for cluster in range(len(set(first.clusters))))


def heatmap_tables(recording: Recording) -> dict[str, list[dict[str, Any]]]:
    """Cells, columns, rows and clusters in places: the chart's data, as `charts.heatmap` draws it."""
    heat = recording.heatmap
    clustering, values_TL = heat.clusterings[0], np.nan_to_num(recording.arrays.heatmap_TL.astype(float))
    shades_TL = normalised(values_TL, heat.normalize)
    tokens = [_token(recording.tokens[t].text) for t in heat.rows]
    latents = [recording.latents[column] for column in heat.columns]
    places, clusters, x, previous = {}, [], 0.0, None
    for column in clustering.order:
        cluster = clustering.clusters[column]
        if cluster != previous:
            x += charts.CLUSTER_GAP if previous is not None else 0
            clusters.append({"x": x, "x2": x, "cluster": cluster, "name": cluster_name(clustering, cluster)})
            previous = cluster
        places[column] = x
        x += 1
        clusters[-1]["x2"] = x
    step = charts.heatmap_step(len(clustering.order))
    for one in clusters:
        if len(one["name"]) * charts.LETTER_PX > (one["x2"] - one["x"]) * step:
            one["name"] = one["name"].partition(" ")[0]
    cells = [
        {
            "x": places[column] + charts.CELL_GAP, "x2": places[column] + 1 - charts.CELL_GAP,
            "y": row + charts.CELL_GAP, "y2": row + 1 - charts.CELL_GAP,
            "token": tokens[row], "latent": _latent_name(latents[column]),
            "value": float(f"{values_TL[row, column]:.4g}"), "shade": round(float(shades_TL[row, column]), 3),
            "row": row, "column": column,
        }
        for row in range(len(tokens)) for column in clustering.order
    ]  # fmt: skip
    return {
        "cells": cells,
        "columns": [
            {"x": places[column] + 0.5, "name": _short(latents[column]), "column": column, "on": False}
            for column in clustering.order
        ],
        "rows": [{"y": row + 0.5, "token": token, "row": row, "on": False} for row, token in enumerate(tokens)],
        "clusters": clusters,
    }


def _token(text: str) -> str:
    return text.strip()[:24] or repr(text)[1:-1][:24]


def _latent_name(latent: Any) -> str:
    return f"{latent.number} {latent.label}".strip()


def _short(latent: Any) -> str:
    return latent.label[:14] or str(latent.number)


def _heatmap(recording: Recording) -> Figure:
    heat, values_TL = recording.heatmap, np.nan_to_num(recording.arrays.heatmap_TL.astype(float))
    clustering = heat.clusterings[0]
    latents = [recording.latents[column] for column in heat.columns]
    rows = []
    for row, position in enumerate(heat.rows):
        strongest = np.argsort(-values_TL[row], kind="stable")
        token = _token(recording.tokens[position].text)
        rows += [(token, latents[c].number, latents[c].label, clustering.clusters[c], float(values_TL[row, c]))
                 for c in strongest if values_TL[row, c] > 0]  # fmt: skip
    scaled = {"none": "not normalised", "row": "each row scaled to its largest", "column": "each column scaled to its "
              "largest"}[heat.normalize]  # fmt: skip
    groups = len(set(clustering.clusters))
    named = ": " + "; ".join(cluster_name(clustering, c) for c in range(groups)) if clustering.names else ""
    description = (
        f"Heatmap of {len(heat.rows)} tokens against {len(latents)} latents, {scaled}, in {groups} clusters by "
        f"{clustering.cluster} clustering, {clustering.distance} distance."
    )
    return Figure(
        "heatmap",
        description,
        f"Which latents each token reads from the picture: activation weighted by the token's attention, {scaled}; "
        f"{clustering.cluster} clusters by {clustering.distance}{named}.",
        Table(("token", "latent", "label", "cluster", "weighted activation"), tuple(rows)),
        lambda: charts.heatmap(**heatmap_tables(recording), description=description),
    )


def _attribution(recording: Recording) -> Figure:
    measured = [a for a in recording.attributions if a.measured is not None]
    agreed = next((a for a in recording.agreements if a.by == "attribution"), None)
    rank = f" Rank correlation {number(agreed.spearman)}." if agreed and agreed.spearman is not None else ""
    description = f"Predicted against measured change of the log-odds for {len(measured)} latents.{rank}"
    rows = tuple((a.latent, _label(recording, a.latent), a.predicted, a.measured) for a in recording.attributions)
    return Figure(
        "attribution",
        description,
        f"One backward pass predicts what ablating each latent does; on the line, the prediction is exact.{rank}",
        Table(("latent", "label", "predicted change", "measured change"), rows),
        lambda: charts.attribution_scatter(measured, description),
    )


def _label(recording: Recording, latent: int) -> str:
    return next((one.label for one in recording.latents if one.number == latent), "")


# --- classification --------------------------------------------------------------------------------------------------


def _classes(recording: Recording) -> Figure:
    found, contrast = recording.classified, contrast_of(recording)
    rows = tuple((name, *(one.probabilities[i] for one in found.scores)) for i, name in enumerate(found.classes))
    rows = tuple(sorted(rows, key=lambda row: -row[1]))
    likeliest = ", ".join(f"{row[0]} {share(row[1])}" for row in rows[:5])
    description = f"Bars of class probabilities, clean: {likeliest}."
    marks = " Bars: the model as it is. Marks: with a steering." if len(found.scores) > 1 else ""
    scale = " Each step of the scale is ten times as likely." if charts.least_shown(found.scores) else ""
    return Figure(
        "classes",
        description,
        f"What the picture is nearest to.{marks}{scale}",
        Table(("class", *(one.name for one in found.scores)), rows),
        lambda: charts.class_bars(found.classes, found.scores, contrast, description),
    )
