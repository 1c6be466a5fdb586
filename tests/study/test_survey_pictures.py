"""What a survey reads: pictures, sources and tables, in as much memory as it is given."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.study.surveys import BROKEN
from vsp_report.errors import InputError, ModelError
from vsp_report.sketchworld import concepts, rules
from vsp_report.sketchworld.drawing import COLORS
from vsp_report.sketchworld.scene import COVERED
from vsp_report.study import photographs, survey_plan


def test_a_picture_is_read_as_it_is_read_for_a_case(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    from vsp_report.model.vlm import load_image

    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "a" / "00.png").resize((90, 60)).save(turned, exif=exif)
    for path in (folder / "a" / "02.png", turned):
        mine, theirs = photographs.read_picture(path), load_image(path)
        assert mine.size == theirs.size and np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_batches_come_in_order_and_name_what_is_broken(folder: Path) -> None:
    source = photographs.open_source(str(folder))
    parts = list(photographs.batches(source, range(len(source)), 4))
    assert [len(part) for part in parts] == [4] * 6 + [1]
    read = [one for part in parts for one in part]
    assert [one.number for one in read] == list(range(len(source)))
    assert tuple(source.name(one.number) for one in read if one.image is None) == BROKEN


def test_a_source_is_plain_data(folder: Path) -> None:
    for source in (photographs.open_source(str(folder)), photographs.Scenes(9, 5)):
        again = photographs.source_of(source.plain())
        assert again == source and again.identity == source.identity
    fewer = photographs.open_source(str(folder), 5)
    assert len(fewer) == 5 and fewer.identity != photographs.open_source(str(folder)).identity


def test_both_halves_of_the_scenes_have_portraits_of_every_kind() -> None:
    source = photographs.Scenes(5000)
    portraits = [(source.half(n), n // 3 % len(rules.PORTRAITS)) for n in range(2, 5000, 3)]
    assert len(set(portraits)) == 2 * len(rules.PORTRAITS)
    share = np.mean([source.half(n) for n in range(5000)])
    assert abs(share - 0.5) < 0.03


def test_a_colour_is_shown_by_what_is_drawn_in_it_asked_about_or_not() -> None:
    """Found on pixels: what is drawn in a colour for about half of what is seen of it, and what is not."""
    seen: dict[tuple[str, str], list[float]] = {}
    for kind in dict.fromkeys((*rules.PORTRAITS, *rules.OBJECTS)):
        for seed in range(12):
            scene = rules.draw_portraits(rules.Draws(seed), kind)
            picture = np.asarray(scene.draw(96)).astype(int)
            for i, thing in enumerate(scene.things):
                pixels = picture[scene.mask(i, 96)]
                word = concepts.color_of(thing)
                for color, anchor in COLORS.items():
                    near = (np.abs(pixels - anchor).max(1) <= 26).mean()
                    seen.setdefault(("drawn" if color == word else "not", thing.kind), []).append(near)
    for (said, kind), shares in seen.items():
        if said == "drawn":
            assert np.mean(shares) > (0.25 if kind in ("book", "person", "animal", "boat") else 0.4), kind
        else:
            assert np.quantile(shares, 0.95) < 0.4, kind
    in_color = {kind for said, kind in seen if said == "drawn"}
    assert in_color >= {*concepts.DRAWN_IN, *rules.COVERS, "book", "cushion", "cup"}
    mitten = rules.draw_portraits(rules.Draws(3), "mitten")
    assert concepts.color_of(mitten.things[0]) in concepts.concepts_in(mitten)


def test_concepts_lie_where_the_scene_has_them() -> None:
    for seed, family in enumerate(rules.FAMILIES):
        scene = rules.sample_scene(1_700_000_000 + seed, family)
        found = concepts.shown(scene, 12, 12, concepts.masks_of(scene, 192))
        assert {concepts.CONCEPTS[c] for c in np.flatnonzero(found.concepts_C)} <= concepts.concepts_in(scene)
        coverage = scene.coverage(12, 12) if scene.parts else np.zeros((0, 12, 12))
        shown = np.zeros((144, len(concepts.CONCEPTS)), bool)
        shown[found.patch_X, found.concept_X] = True
        assert not shown[:, ~found.concepts_C].any()
        if scene.chart:
            assert shown[:, concepts.CONCEPTS.index("chart")].all()
            continue
        covered = (coverage >= COVERED + 0.06).any(0).ravel()
        assert shown[covered].any(1).all(), family


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "its header is empty"),
        ("name,label\na,b\n", "its header is name,label"),
        ("image,label\n", "labels nothing"),
        ("latent,label\nfive,chair\n", ":2: latent is 'five'"),
        ("latent,label\n5,\n", ":2: is '5,'"),
        ("latent,label\n\n\n5,chair\n\nsix,chair\n", ":6: latent is 'six'"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, fault: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=fault):
        photographs.read_labels(table)


def test_tables(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "labels.csv").write_text("﻿Image,Label\na/00.png,old man\n\na/02.png,boy\n", encoding="utf-8")
    table = photographs.read_labels(tmp_path / "labels.csv")
    source = photographs.open_source(str(folder), None, table.labels, "labels.csv")
    assert (
        source.label(source.names.index("a/00.png")) == "old man" and source.label(source.names.index("b/01.png")) == ""
    )
    with pytest.raises(InputError, match="labels none of the pictures"):
        photographs.open_source(str(folder), None, {"elsewhere.png": "x"}, "labels.csv")


def test_memory_is_for_pictures_of_any_size(tmp_path: Path) -> None:
    """Pictures of 5 megapixels: what is open at once follows --memory, and not the batch, which would hold them all."""
    from PIL import Image

    large = Image.linear_gradient("L").resize((2592, 1944)).convert("RGB")
    for k in range(16):
        large.save(tmp_path / f"{k:02}.jpg", quality=60 + k)
    program = """
import re, sys
from vsp_report.study import photographs, survey, survey_plan
survey_plan.PROBED = 2
most = lambda: int(re.search("VmHWM:.*?([0-9]+)", open("/proc/self/status").read())[1]) / 1024
asked = lambda n: survey.Asked("sketchworld", ("sketchworld/vision.3",), photographs.open_source(sys.argv[1], n),
                               device="cpu", shard=64, memory_bytes=64 << 20)
for n in (1, 16):
    plan = survey.plan(asked(n), sys.argv[1])
    survey.survey_shard(str(plan.folder), 0, 64 << 20)
    print(most())
"""
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    one, many = map(float, ran.stdout.split())
    assert many - one < 160, f"{many - one:.0f} MiB more; held whole they would take 320"


def test_pictures_are_read_ahead_no_further_than_fits(tmp_path: Path) -> None:
    from PIL import Image

    for k in range(12):
        Image.new("RGB", (100, 100 + k)).save(tmp_path / f"{k:02}.png")
    (tmp_path / "05.png").write_text("no picture")
    source, entered = photographs.open_source(str(tmp_path)), []
    room = lambda n: n * photographs.PIXEL_BYTES * 100 * 115  # noqa: E731

    def at_most(bytes_open: int) -> int:
        """How many are decoded when the first one is looked at."""
        entered.clear()
        with pytest.MonkeyPatch.context() as patch:
            enter = photographs._Room.enter
            patch.setattr(photographs._Room, "enter", lambda self, *w: (enter(self, *w), entered.append(w)))
            stream = photographs.stream(source, range(12), 12, bytes_open)
            first = next(stream)
            time.sleep(0.2)
            found = len(entered)
            assert [first.number, *(one.number for one in stream)] == list(range(12))
        return found

    assert at_most(0) == 1 and at_most(room(3)) == 3 and at_most(room(100)) == 12
    # Who has seen enough leaves no thread behind that waits.
    stream = photographs.stream(source, range(12), 12, 0)
    next(stream)
    stream.close()


def test_pixels_are_what_the_whole_picture_gives(folder: Path) -> None:
    """Made ready one by one as in a batch, to the last bit."""
    import torch

    from vsp_report.model.feeding import Feeder
    from vsp_report.model.taps import Tap
    from vsp_report.study.survey_reading import ready

    vlm = survey_plan.kept_vlm("sketchworld", "cpu", None)
    source, feeder = photographs.open_source(str(folder)), Feeder(vlm, [Tap.parse("vision.3")])
    found = [one for batch in ready(source, feeder, range(len(source)), 4, 1 << 20, 32) for one in batch]
    assert tuple(source.name(one.photograph.number) for one in found if one.prompt is None) == BROKEN
    for one in found:
        if one.prompt is not None:
            image = photographs.read_picture(folder / source.name(one.photograph.number))
            torch.testing.assert_close(
                one.prompt.inputs["pixel_values"], vlm.prepare(image, "").inputs["pixel_values"], rtol=0, atol=0
            )
            assert one.photograph.image is None and one.grid == (12, 12) and one.small


def test_states_that_are_not_finite_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As half precision makes them where a tower's channels are large: of one value, at one tap."""
    from vsp_report.model import feeding
    from vsp_report.model.taps import Tap

    vlm = survey_plan.kept_vlm("sketchworld", "cpu", None)
    feeder, once = feeding.Feeder(vlm, [Tap.parse("vision.0"), Tap.parse("vision.3")]), feeding.see_states
    prompt = feeder.prompt(photographs.read_picture(folder / "a" / "00.png"))
    assert feeder.see([prompt, prompt]).states[feeder.top].isfinite().all()

    def overflowing(*words: object) -> dict:
        seen = once(*words)
        seen[Tap.parse("vision.0")].view(-1)[-1] = float("inf")
        return seen

    monkeypatch.setattr(feeding, "see_states", overflowing)
    with pytest.raises(ModelError, match=r"vision.0: sketchworld gives states that are not finite. Try another --dtyp"):
        feeder.see([prompt])


def test_a_folder_has_the_same_pictures_for_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vsp_report.cli import saes
    from vsp_report.study.image_sets import image_set

    shutil.copytree(folder / "a", tmp_path / "mine")
    (tmp_path / "mine" / "folder.png").mkdir()
    (tmp_path / "mine" / ".hidden.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for n in (5, 100):
        names = list(photographs.open_source("mine", n).names)
        assert len(names) == min(n, 12) and "folder.png" not in names
        assert [one.name for one in image_set("mine", n).pictures] == names
        assert [make().relative_to("mine").as_posix() for make in saes._pictures("mine", n)] == names
