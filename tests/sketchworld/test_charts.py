"""The bar charts: the numbers are the tables', the pixels are where the masks say."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vsp_report.sketchworld.charts import (
    COLORS,
    GOLD,
    SHORTEST,
    TABLES,
    TALLEST_LEAD,
    Bar,
    Chart,
    draw,
    draw_many,
    masks,
    sample_chart,
)


def sampled(count: int, seed: int = 5) -> list[Chart]:
    numbers = random.Random(seed)
    return [sample_chart(numbers.random, highlight=i % 2 == 0) for i in range(count)]


CHARTS = sampled(24)
MARKED_LOWER = tuple(replace(chart, highlighted=len(chart.bars) - 1) for chart in CHARTS[:6])


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def near(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels(picture) - color).max(axis=2) <= 8


def test_equal_numbers_give_equal_charts() -> None:
    assert sampled(300) == sampled(300)
    assert sampled(20) != sampled(20, seed=6)


def test_the_values_are_those_of_every_other_machine() -> None:
    values = [(c.table, c.measure, [(bar.label, bar.value) for bar in c.bars]) for c in sampled(300)]
    assert hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16] == "8f9a694384e1f13e"


def test_every_chart_has_one_clear_answer() -> None:
    for i, chart in enumerate(sampled(1000)):
        *lower, second, tallest = sorted(bar.value for bar in chart.bars)
        assert 3 <= len(chart.bars) <= 5
        assert (tallest - second) / tallest >= TALLEST_LEAD
        assert lower[0] / tallest >= SHORTEST
        assert len({bar.label for bar in chart.bars}) == len(chart.bars)
        assert len({bar.color for bar in chart.bars}) == len(chart.bars)
        assert {bar.color for bar in chart.bars} <= set(COLORS)
        if i % 2:
            assert chart.highlighted is None
        else:
            assert chart.bars[chart.highlighted].value == tallest


def test_charts_rarely_repeat_and_every_table_is_used() -> None:
    charts = sampled(2000)
    assert len({(c.measure, *(bar.label for bar in c.bars)) for c in charts}) > 1400
    assert {c.table for c in charts} == set(TABLES)
    assert {len(c.bars) for c in charts} == {3, 4, 5}


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_are_inside_the_package(table: str) -> None:
    from vega_datasets import data

    assert getattr(data, table.replace("-", "_")).is_local


def test_the_values_are_means_of_the_real_table() -> None:
    from vega_datasets import local_data

    yields = defaultdict(list)
    for row in json.loads(local_data.barley.raw()):
        yields[f"{row['variety']}, {row['year']}", row["site"]].append(row["yield"])
        yields[f"{row['site']}, {row['year']}", row["variety"]].append(row["yield"])
    charts = [chart for chart in sampled(400) if chart.table == "barley"]
    assert len(charts) > 20
    for chart in charts:
        within = chart.measure.removeprefix("Barley yield (bushels/acre), ")
        for bar in chart.bars:
            assert bar.value == pytest.approx(np.mean(yields[within, bar.label]), rel=1e-3)


def test_importing_loads_neither_altair_nor_pandas() -> None:
    code = "import sys, vsp_report.sketchworld.charts; print({'altair', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("size_px", [96, 384])
def test_a_sheet_has_the_pixels_of_single_pictures(size_px: int) -> None:
    charts = [*CHARTS[:8], *MARKED_LOWER[:3]]
    for one, chart in zip(draw_many(charts, size_px), charts, strict=True):
        assert one.size == (size_px, size_px)
        assert one.mode == "RGB"
        apart = np.abs(pixels(one) - pixels(draw(chart, size_px))).max(-1)
        assert (apart > 1).sum() <= 8 and apart.max() < 32  # a few pixels on the edge of a letter


def test_sheets_of_any_length() -> None:
    assert draw_many([], 96) == []
    many = draw_many(CHARTS[:3] * 50, 96)
    assert len(many) == 150
    assert many[0].tobytes() == many[-3].tobytes() == draw_many(CHARTS[:1], 96)[0].tobytes()


def test_labels_that_look_like_numbers_keep_their_places() -> None:
    bars = (Bar("2015", 3, "red"), Bar("2014", 2, "blue"), Bar("2013", 1, "white"))
    chart = replace(CHARTS[0], bars=bars)
    assert np.array_equal(pixels(draw_many([chart], 96)[0]), pixels(draw(chart, 96)))


def test_a_theme_enabled_elsewhere_changes_nothing() -> None:
    import altair as alt

    plain = draw(CHARTS[0], 96).tobytes()
    with alt.theme.enable("dark"):
        assert draw(CHARTS[0], 96).tobytes() == plain


def test_the_report_picture_shrinks_to_the_model_picture() -> None:
    for large, small in zip(draw_many(CHARTS, 384), draw_many(CHARTS, 96), strict=True):
        for how in (Image.Resampling.BOX, Image.Resampling.BICUBIC):
            assert np.abs(pixels(large.resize((96, 96), how)) - pixels(small)).mean() < 4


@pytest.mark.parametrize("size_px", [96, 384])
def test_a_mask_is_where_the_picture_has_its_color(size_px: int) -> None:
    charts = [*CHARTS, *MARKED_LOWER]
    for chart, picture in zip(charts, draw_many(charts, size_px), strict=True):
        truth = masks(chart, size_px)
        assert ("highlight" in truth) == (chart.highlighted is not None)
        assert len(truth) == len(chart.bars) + ("highlight" in truth)
        assert sum(mask.astype(int) for mask in truth.values()).max() == 1
        colors = {f"bar {i}": COLORS[bar.color] for i, bar in enumerate(chart.bars)} | {"highlight": GOLD}
        for name, mask in truth.items():
            shown = near(picture, colors[name])
            assert (shown & mask).sum() >= 0.95 * shown.sum()
            assert (shown & mask).sum() >= 0.4 * mask.sum()


def test_only_a_highlighted_chart_has_gold() -> None:
    for chart, picture in zip(CHARTS, draw_many(CHARTS, 96), strict=True):
        assert near(picture, GOLD).any() == (chart.highlighted is not None)
