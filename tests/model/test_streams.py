"""Streams and their cache: every row once, in an order that is found again; states as they are seen one by one; and
a cache that gives what pictures give, or says why it does not."""

from __future__ import annotations

import itertools
import json
from functools import partial

import pytest
import torch
from PIL import Image

from vsp_report.errors import ImageError, InputError, ModelError, SteeringError, VspError
from vsp_report.model.activation_cache import EVERY, MANIFEST, Identity, open_cache, write_cache
from vsp_report.model.sites import Sites
from vsp_report.model.steering import see_states
from vsp_report.model.streams import Picture, PictureRows, Stream, trained_taps
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import load_vlm
from vsp_report.sketchworld import rules


class Numbered:
    """Chunks of 3, 4, 5, … rows that say who they are; at `b` twice as many."""

    taps = ("a", "b")

    def __init__(self, chunks: int = 7, empty: tuple[int, ...] = ()) -> None:
        self.chunks, self.empty, self.loaded, self.skipped = chunks, empty, [], {}

    def load(self, chunk, then=None):
        self.loaded.append(chunk)
        if chunk in self.empty:
            return {}
        rows = torch.arange(64 * chunk, 64 * chunk + 3 + chunk).half()[:, None]
        return {"a": rows, "b": torch.cat([rows, -rows - 1])}


ROWS = sorted(64 * chunk + k for chunk in range(7) for k in range(3 + chunk))  # 42 of them


def taken(stream: Stream, n: int) -> list[list[float]]:
    return [rows["a"][:, 0].tolist() for rows in itertools.islice(stream, n)]


def flat(batches: list[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(batches))


@pytest.mark.parametrize("buffer", [4, 10, 1000])
@pytest.mark.parametrize("batch", [1, 3, 6])
def test_every_row_comes_once_before_any_comes_twice(batch, buffer):
    stream = Stream(Numbered(), batch, seed=0, buffer=buffer)
    first, second = taken(stream, 42 // batch), taken(stream, 42 // batch)
    assert sorted(flat(first)) == ROWS == sorted(flat(second))
    assert first != second and flat(first) != ROWS


def test_what_is_left_over_is_carried_and_not_dropped():
    seen = flat(taken(Stream(Numbered(), 5, seed=0, buffer=10), 42))  # 5 epochs of 42, in batches of 5
    assert sorted(seen) == sorted(ROWS * 5)


def test_more_rows_than_a_buffer_are_never_held():
    source = Numbered(chunks=40)
    stream = Stream(source, 8, seed=0, buffer=32)
    next(stream)
    assert len(source.loaded) < 10


def test_a_stream_that_is_put_back_goes_on_as_if_nothing_had_been():
    whole = taken(Stream(Numbered(), 5, seed=3, buffer=10), 60)
    stream = Stream(Numbered(), 5, seed=3, buffer=10)
    for n in range(25):
        other = Stream(Numbered(), 5, seed=3, buffer=10)
        other.go_to(stream.position)
        other.sample()
        assert taken(other, 30) == whole[n : n + 30]
        next(stream)
    assert taken(Stream(Numbered(), 5, seed=4, buffer=10), 60) != whole


def test_a_sample_takes_nothing_away():
    stream = Stream(Numbered(), 5, seed=0, buffer=10)
    assert len(stream.sample()["a"]) >= 10
    assert taken(stream, 9) == taken(Stream(Numbered(), 5, seed=0, buffer=10), 9)


def test_processes_share_the_chunks_of_an_epoch():
    parts = [taken(Stream(Numbered(), 1, seed=0, share=(rank, 3)), 10) for rank in range(3)]
    firsts = [set(flat(part)) for part in parts]
    assert not firsts[0] & firsts[1] and not firsts[1] & firsts[2]
    with pytest.raises(ImageError, match="7 batches; 8 processes"):
        Stream(Numbered(), 1, seed=0, share=(0, 8))


def test_the_tap_with_more_rows_is_thinned_evenly():
    rows = next(Stream(Numbered(), 42, seed=0))
    assert len(rows["a"]) == len(rows["b"]) == 42
    halves = (rows["b"] < 0).float().mean()
    assert 0.2 < float(halves) < 0.8  # not the first ones only


def test_chunks_without_rows_are_passed_over_and_all_of_them_an_error():
    stream = Stream(Numbered(empty=(0, 3)), 1, seed=0)
    assert len(set(flat(taken(stream, 33)))) == 33
    with pytest.raises(ImageError, match="none of them"):
        next(Stream(Numbered(empty=tuple(range(7))), 1, seed=0))


def test_fewer_rows_than_a_batch_are_gone_over_again():
    (rows,) = taken(Stream(Numbered(), 100, seed=0), 1)
    assert len(rows) == 100 and set(rows) <= set(ROWS) and max(map(rows.count, rows)) <= 3


def test_a_stop_between_chunks_leaves_the_stream_where_it_was():
    calls = iter(range(100))

    def check():
        if next(calls) == 4:
            raise KeyboardInterrupt

    stream, plain = (Stream(Numbered(), 5, seed=0, buffer=10, check=c) for c in (check, lambda: None))
    seen = []
    with pytest.raises(KeyboardInterrupt):
        while True:
            seen.append(next(stream)["a"])
    assert [rows["a"].tolist() for rows in itertools.islice(plain, len(seen))] == [rows.tolist() for rows in seen]
    assert taken(stream, 12) == taken(plain, 12)


# --- states of pictures ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("sketchworld")


def scenes(n: int) -> list[Picture]:
    return [Picture(f"scene {k}", partial(rules.sample_scene(1_200_000_000 + k).draw, 192)) for k in range(n)]


def source(vlm, words=("vision.3", "text.2", "connector", "vision.0"), n=5, per_pass=2, **more) -> PictureRows:
    return PictureRows(vlm, trained_taps(vlm, words), scenes(n), per_pass, **more)


def test_states_are_those_of_each_picture_alone(vlm):
    rows = source(vlm, dtype=torch.float32)
    for chunk in range(rows.chunks):
        found = rows.load(chunk)
        for tap in rows.at:
            alone = []
            for picture in scenes(5)[2 * chunk : 2 * chunk + 2]:
                prompt = vlm.prepare(picture.make(), rows.prompt)
                states = see_states(vlm, prompt, [tap])[tap].flatten(0, -2)
                sites = Sites.of(vlm, prompt, tap)
                alone.append(states[sites.rows_S[torch.as_tensor(~sites.class_S)]])
            torch.testing.assert_close(found[str(tap)], torch.cat(alone), rtol=1e-3, atol=1e-4)
    assert len(found["text.2"]) > len(found["vision.0"]) == 144  # words besides; the last picture is alone


def test_one_forward_pass_serves_all_taps(vlm):
    passes = []
    hook = vlm.family.vision_layers(vlm.model)[0].register_forward_hook(lambda *seen: passes.append(1))
    try:
        source(vlm, n=4).load(0)
    finally:
        hook.remove()
    assert len(passes) == 1


def test_a_picture_that_cannot_be_read_is_left_out_by_name(vlm, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG no more")
    Image.new("RGB", (1000, 2)).save(tmp_path / "long.png")
    bad = [Picture(name, partial(str, tmp_path / name)) for name in ("torn.png", "long.png")]
    rows = PictureRows(vlm, (Tap("vision", 3),), [*scenes(1), *bad], per_pass=2)
    assert len(rows.load(0, 1)["vision.3"]) == 144 and rows.load(1) == {}
    assert set(rows.skipped) == {"torn.png", "long.png"} and "200 to 1" in rows.skipped["long.png"]


def test_states_that_do_not_fit_their_precision_are_an_error_and_not_infinite(vlm):
    layer = vlm.family.vision_layers(vlm.model)[3]
    hook = layer.register_forward_hook(lambda module, args, out: (out[0] if isinstance(out, tuple) else out) * 1e6)
    try:
        with pytest.raises(ModelError, match=r"vision\.3: its states, up to .*, do not fit float16\. .*--states"):
            source(vlm, ["vision.3"]).load(0)
        assert source(vlm, ["vision.3"], dtype=torch.bfloat16).load(0)["vision.3"].isfinite().all()
    finally:
        hook.remove()


def test_taps_are_counted_from_0_each_once_and_read(vlm):
    assert trained_taps(vlm, ["vision.-3", "vision.3", "text.0"]) == (Tap("vision", 3), Tap("text", 0))
    with pytest.raises(ModelError, match=r"--tap: vision\.9 is not in"):
        trained_taps(vlm, ["vision.9"])
    with pytest.raises(SteeringError, match=r"reads vision\.4 and nothing above"):
        trained_taps(vlm, ["vision.5"])


# --- cache -------------------------------------------------------------------------------------------------------

OF = Identity("m 1", "5 scenes", "Describe the image.", "float16", 2)


def same(one, other) -> bool:
    return all(torch.equal(one[tap], other[tap]) for tap in one) and set(one) == set(other)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_cache_gives_what_the_pictures_give(vlm, tmp_path, dtype):
    of, rows = OF._replace(dtype=dtype), source(vlm, ["vision.3", "text.2"], dtype=getattr(torch, dtype))
    assert open_cache(tmp_path / "c", of, rows.taps) is None
    done = []
    cached = write_cache(tmp_path / "c", of, rows, on_chunk=done.append)
    assert done == [1, 2, 3] and cached.chunks == 3 and cached.rows == 5 * 144
    streams = Stream(cached, 50, 0, buffer=200), Stream(rows, 50, 0, buffer=200)
    for ours, theirs in itertools.islice(zip(*streams, strict=True), 25):
        assert same(ours, theirs)
    again = open_cache(tmp_path / "c", of, ("text.2",))
    assert same(again.load(1), {"text.2": rows.load(1)["text.2"]})


def test_a_cache_that_was_stopped_goes_on_where_it_was(vlm, tmp_path):
    folder, rows = tmp_path / "c", source(vlm, ["vision.0"], n=7, per_pass=1)
    of, calls = OF._replace(per_pass=1), iter(range(100))

    def check():
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(folder, of, rows, check=check)
    assert open_cache(folder, of, rows.taps) is None and not json.loads((folder / MANIFEST).read_text())["whole"]
    with open(folder / "vision.0.rows", "ab") as file:
        file.write(b"what a killed run wrote and did not count")
    done = []
    cached = write_cache(folder, of, rows, on_chunk=done.append)
    assert done == [4, 5, 6, 7]
    assert all(same(cached.load(k), rows.load(k)) for k in range(7))
    with pytest.raises(InputError, match=r"is a cache of vision\.0, half written"):
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"whole": true', '"whole": false'))
        write_cache(folder, of, source(vlm, ["vision.1"], n=7, per_pass=1))


def test_a_manifest_never_counts_rows_that_are_not_there(vlm, tmp_path):
    """Killed after any chunk: what the manifest counts is on disk."""

    class Many(Numbered):
        taps = ("a",)

        def load(self, chunk, then=None):
            rows = {"a": super().load(chunk)["a"]}
            told = tmp_path / "c" / MANIFEST
            counted = sum(json.loads(told.read_text())["taps"]["a"]["rows"]) if told.exists() else 0
            assert (tmp_path / "c" / "a.rows").stat().st_size >= counted * 2
            seen.append(counted)
            return rows

    seen, many = [], Many(chunks=2 * EVERY + 5)
    write_cache(tmp_path / "c", OF, many)
    assert len(set(seen)) == 3  # it was written in between


@pytest.mark.parametrize(
    ("field", "other", "said"),
    [
        ("model", "m 2", "its model is 'm 1', and 'm 2' is asked for"),
        ("images", "6 scenes", "its pictures are '5 scenes'"),
        ("prompt", "What?", "its prompt is"),
        ("dtype", "float32", "its states are"),
        ("per_pass", 4, "its passes are of 2"),
    ],
)
def test_a_foreign_or_stale_cache_is_refused(field, other, said, tmp_path):
    write_cache(tmp_path / "c", OF, Numbered())
    with pytest.raises(InputError) as caught:
        open_cache(tmp_path / "c", OF._replace(**{field: other}), ("a",))
    assert said in str(caught.value) and "Name another folder" in str(caught.value)


def test_what_is_no_cache_or_a_damaged_one_is_refused(tmp_path):
    numbered, folder = Numbered(), tmp_path / "c"
    write_cache(folder, OF, numbered)
    with pytest.raises(InputError, match="holds states of a, b, not of c"):
        open_cache(folder, OF, ("a", "c"))
    (folder / "a.rows").write_bytes(b"short")
    with pytest.raises(InputError, match="has 5 bytes where"):
        open_cache(folder, OF, ("a",))
    for text, said in (("{", "is no manifest"), ("[]", "is no manifest"), ('{"format": 9}', "is no manifest")):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(InputError, match=said):
            open_cache(folder, OF, ("a",))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    (tmp_path / "file").touch()
    for place in (tmp_path / "photos", tmp_path / "file", tmp_path / "no" / "where"):
        with pytest.raises(VspError) as caught:
            write_cache(place, OF, numbered)
        assert "\n" not in str(caught.value)
