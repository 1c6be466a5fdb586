"""Drawing: colours that can be read, overlays where the patches are, charts with the same bytes each time."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.render.recordings import classification, full
from vsp_report.render import charts, figures, overlays, prose
from vsp_report.render.theme import DARK, LIGHT, finished_svg, stylesheet


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_colours_can_be_read(colours: dict[str, str]) -> None:
    for name in ("ink", "soft", "after", "right", "wrong"):
        for ground in ("paper", "wash"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert contrast(colours["before"], colours["paper"]) >= 3
    assert len(set(colours.values())) == len(colours)  # one value each: charts exchange them
    assert all(f"--{name}:{value}" in stylesheet() for name, value in colours.items())


def test_a_style_sheet_uses_no_colour_that_has_no_name(root) -> None:
    css = (root / "templates" / "static" / "report.css").read_text()
    used = set(re.findall(r"var\(--([a-z]+)\)", css)) - {"text", "small", "mono"}
    assert used <= LIGHT.keys()
    assert not re.findall(r"#[0-9a-f]{3,8}\b", css)


def test_a_field_lies_where_its_patch_is() -> None:
    boxes = np.array([[0, 0, 50, 50], [50, 0, 100, 50], [0, 50, 50, 100], [np.nan] * 4], dtype=np.float32)
    field = overlays.spread(np.array([0.0, 2.0, 1.0, 9.0]), boxes, 100, 100)
    assert field.shape == (192, 192) and field.max() == 1
    assert field[:90, 100:].min() == 1 and field[100:, :90].max() == 0.5 and field[:90, :90].max() == 0
    # A weight is spread over its area: a tile of four times the size is a quarter as strong.
    tiles = np.array([[0, 0, 100, 100], [0, 0, 50, 50]], dtype=np.float32)
    field = overlays.spread(np.array([4.0, 1.0]), tiles, 100, 100)
    assert field[150, 150] == pytest.approx(0.5) and field[10, 10] == 1
    assert overlays.spread(np.zeros(2), tiles, 100, 100).max() == 0


def test_an_overlay_colours_only_what_has_weight() -> None:
    image = Image.new("RGB", (100, 60), (90, 120, 160))
    field = np.zeros((116, 192))
    field[:, :96] = 1
    made = np.asarray(overlays.overlay(image, field, size_px=200))
    assert made.shape == (120, 200, 3)
    assert made[60, 20, 0] > made[60, 180, 0] + 30
    assert np.asarray(overlays.overlay(image, field, smooth=True, size_px=200)).shape == made.shape


def test_what_is_no_picture_is_none(tmp_path) -> None:
    (tmp_path / "x.png").write_text("<svg onload=alert(1)>")
    assert overlays.opened(tmp_path / "x.png") is None
    assert overlays.opened(tmp_path / "absent.png") is None
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    (tmp_path / "vast.png").write_bytes(buffer.getvalue())
    assert overlays.opened(tmp_path / "vast.png") is None


def test_charts_are_the_same_each_time_and_know_the_night() -> None:
    found = figures.figures_of(full()) | figures.figures_of(classification())
    kinds = {name.split("-")[0] for name in found}
    assert kinds == {"controls", "rounds", "dose", "heatmap", "attribution", "classes"}
    for name in ("controls-0-strongest-ten", "rounds-0-second-round", "dose-0-strongest-ten", "classes"):
        figure = found[name]
        svg = charts.svg(figure.draw())
        assert svg == charts.svg(figure.draw())
        assert "prefers-color-scheme:dark" in svg
        assert any(colour in svg for colour in (DARK["after"], DARK["right"], DARK["wrong"]))
        assert figure.alt and figure.caption and figure.table.rows


def test_unlikely_classes_are_told_apart() -> None:
    scores = classification().classified.scores
    assert charts.least_shown(scores) == 0
    rare = tuple(replace(one, probabilities=(0.9989, 0.001, 0.0001, 0.0, *one.probabilities[4:])) for one in scores)
    assert charts.least_shown(rare) == pytest.approx(1e-6)
    drawn = charts.class_bars(classification().classified.classes, rare, None, "x").to_dict()
    assert drawn["layer"][0]["encoding"]["x"]["scale"] == {"type": "log", "domain": [1e-6, 1], "nice": False}
    assert min(row["probability"] for row in drawn["data"]["values"]) == 1e-6
    # Its ticks are as even as the scale, and the last is certainty.
    assert drawn["layer"][0]["encoding"]["x"]["axis"]["values"] == pytest.approx([1, 1e-2, 1e-4, 1e-6])
    assert charts.decades(1e-3) == pytest.approx([1, 0.1, 0.01, 0.001])


def test_counted_ids_are_counted_anew() -> None:
    one = finished_svg('<svg a="b"><linearGradient id="gradient_7"/><rect fill="url(#gradient_7)"/></svg>')
    two = finished_svg('<svg a="b"><linearGradient id="gradient_93"/><rect fill="url(#gradient_93)"/></svg>')
    assert one == two and one.count("gradient_0") == 2


def test_places_are_written_to_a_hundredth_of_a_pixel_and_what_is_said_as_it_is() -> None:
    drawn = finished_svg(
        '<svg a="b"><path d="M0.123456,-7.5L12,1.1999" opacity="0.123456"/><text>0.123456</text></svg>'
    )
    assert 'd="M0.12,-7.5L12,1.20"' in drawn and 'opacity="0.123456"' in drawn and ">0.123456<" in drawn


def test_the_heatmap_is_in_the_order_of_its_clusters() -> None:
    tables = figures.heatmap_tables(full())
    places = [column["x"] for column in tables["columns"]]
    assert places == sorted(places) and len(tables["clusters"]) == 5
    assert tables["clusters"][0]["name"] == "0 furniture"
    assert max(cell["shade"] for cell in tables["cells"]) == 1
    assert {len({cell["row"] for cell in tables["cells"]}), len(tables["rows"])} == {11}


@pytest.mark.parametrize(
    ("how", "expected"),
    [("none", [[0.25, 0], [1, 0]]), ("row", [[1, 0], [1, 0]]), ("column", [[0.25, 0], [1, 0]])],
)
def test_normalising(how: str, expected: list) -> None:
    assert figures.normalised(np.array([[1.0, 0.0], [4.0, 0.0]]), how).tolist() == expected


def test_a_story_is_prose_and_nothing_else() -> None:
    said = str(prose.story("A *b* **c** `<d>`\nand [e](https://f.org/_g_h).\n\n- one\n  more\n- two\n\n<b>x</b> 1*2*3"))
    assert said.splitlines() == [
        '<p>A <em>b</em> <strong>c</strong> <code>&lt;d&gt;</code> and <a href="https://f.org/_g_h" rel="noreferrer">e'
        "</a>.</p>",
        "<ul><li>one more</li><li>two</li></ul>",
        "<p>&lt;b&gt;x&lt;/b&gt; 1*2*3</p>",
    ]
    evil = str(prose.story('[x](javascript:alert(1)) [y](https://a"onclick="b) <script>'))
    assert "<script" not in evil and 'onclick="' not in evil and 'href="javascript' not in evil
    assert str(prose.story(None)) == ""
