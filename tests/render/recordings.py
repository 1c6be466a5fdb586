"""Recordings that no model made, for the tests of pages: seeded numbers around a picture that SketchWorld drew.

`full` has every part; the others are what can go wrong, another kind of case, and a stranger's mischief.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vsp_report.case import make_case
from vsp_report.recording import (
    SCHEMA,
    Agreement,
    Answered,
    Arrays,
    Attribution,
    Classified,
    ClassScores,
    Clustering,
    Collateral,
    ControlDraws,
    Diagnosis,
    Dose,
    EditMade,
    Evidence,
    Grid,
    Heatmap,
    Latent,
    MinimalSet,
    Picture,
    Provenance,
    Recording,
    Reference,
    Repeated,
    Rephrased,
    Steered,
    Stop,
    Swept,
    Token,
    save_recording,
)
from vsp_report.sketchworld import planted

WORDS = ["USER:", " is", " the", " person", " sitting", " or", " standing", "?", " ASSISTANT:", " sitting", "</s>"]
SIDE = 12
LABELS = ["chair", "seat", "person", "legs", "red shirt", "ground", "sky", "head", "", "chair back"]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}</title>"


def picture(mode: str = "misleading-cue", variation: str = "chair", seed: int = 1) -> bytes:
    buffer = io.BytesIO()
    planted.plant(mode, variation, seed).scene.draw(384).save(buffer, "PNG")
    return buffer.getvalue()


def asked(**changes: Any) -> dict[str, Any]:
    data = {
        "title": "Standing beside a chair",
        "failure": "misleading-cue",
        "tags": ["people", "furniture"],
        "story": "The person stands. But *whoever* is in a picture with a chair sits on it.\n\n"
        "If the chair misleads the model, taking the **chair's latents** away should let it see the `legs`.\n\n"
        "- one thing\n- and [another](https://example.org/a_b_c)",
        "model": "sketchworld",
        "sae": "sketchworld/vision.3",
        "image": {"scene": {"mode": "misleading-cue", "variation": "chair", "seed": 1}},
        "prompt": "Is the person sitting or standing?",
        "contrast": {"right": "standing", "wrong": "sitting"},
        "steer": {
            "no-chair": [{"latents": {"label": "chair", "top": 10}, "set": 0}],
            "strongest-ten": [{"latents": {"top": 10, "by": "attribution", "supports": "wrong"}, "set": 0}],
            "second-round": {"onto": "no-chair", "edits": [{"latents": [3, 5], "scale": 2}]},
        },
        "sweep": {"of": "strongest-ten"},
        "controls": {"prompts": ["What color is the shirt?"]},
        "rephrase": {"other-order": "Is the person standing or sitting?"},
        "expect": {
            "before": {"answer": "sitting", "margin": {"lt": 0}},
            "after": {"strongest-ten": {"answer": "standing", "margin": {"gt": 0}, "p": {"le": 0.01}}},
            "controls": {"flips": {"le": 0.05}},
            "diagnosis": "misleading-cue",
        },
    } | changes
    return make_case({key: value for key, value in data.items() if value is not None}, "synthetic").resolved()


def answered(text: str, margin: float | None) -> Answered:
    right = None if margin is None else float(1 / (1 + np.exp(-margin)))
    wrong = None if right is None else 1 - right
    return Answered(text, (Token(f" {text}", "answer", 7, -0.1),), True, margin, right, wrong)


def _boxes() -> np.ndarray:
    step = 384 / SIDE
    return np.array([[c * step, r * step, (c + 1) * step, (r + 1) * step] for r in range(SIDE) for c in range(SIDE)],
                    dtype=np.float32)  # fmt: skip


def _blob(x: float, y: float, width: float = 1.3) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)).ravel()


def _arrays(rng: np.random.Generator, latents: int) -> Arrays:
    places = [(4.2, 6.5), (4.4, 7.6), (7.2, 6), (7.2, 9), (7.1, 5.5), (6, 11), (6, 1), (7.1, 3), (2, 2), (4, 5)]
    maps = np.stack([_blob(*places[i % 10], 1 + rng.random()) * rng.uniform(0.5, 4) for i in range(latents)])
    maps[maps < 0.25] = 0
    attention = np.stack([
        0.01 * rng.random(SIDE**2) + (0.2 + 0.5 * rng.random()) * _blob(*places[i % 4], 1.5) / 14
        for i in range(len(WORDS))
    ])  # fmt: skip
    predicting = np.concatenate([np.full((1, SIDE**2), np.nan), attention[:-1]])
    weighted = predicting @ maps.T
    return Arrays(predicting.astype(np.float16), attention.astype(np.float16), _boxes(), maps.astype(np.float16),
                  weighted.astype(np.float32))  # fmt: skip


def _controls(rng: np.random.Generator, change: float, spread: float = 0.3) -> tuple[ControlDraws, ...]:
    found = []
    for kind, wide in (("latents", spread), ("directions", spread / 3), ("untrained", spread / 2)):
        draws = rng.normal(0, wide, 200)
        far = int((draws >= abs(change)).sum())
        found.append(ControlDraws(kind, tuple(map(float, draws)), 0.005, (1 + far) / 201))
    return tuple(found)


def full(**changes: Any) -> Recording:
    rng = np.random.default_rng(0)
    count = 30
    latents = tuple(
        Latent(100 + 37 * i, LABELS[i % 10], 1.5 + i % 3, 20.0 + i, 0.02 * (i % 9), 0.4, i == 29,
               (Reference(f"scene-{i}", 3.1), Reference(f"scene-{i + 40}", 2.9)))
        for i in range(count)
    )  # fmt: skip
    clusters = tuple(sorted(i % 5 for i in range(count)))
    grouped = [Clustering(c, d, tuple(range(count)), clusters, ("furniture", "person", "ground", "sky", "rest"))
               for c in ("hierarchical", "k-means") for d in ("correlation", "euclidean")]  # fmt: skip
    kinds = ["template", *["prompt"] * 7, "template", "answer", "answer"]
    steered = (
        Steered("no-chair", (EditMade(tuple(range(100, 110)), "set", 0.0, (), "label chair, top 10"),),
                answered("sitting", -0.8), change=2.31, interval=(2.1, 2.5), p=0.02, controls=_controls(rng, 2.31),
                collateral=(Collateral("What color is the shirt?", "red", "red"),)),
        Steered("strongest-ten", (EditMade(tuple(range(200, 210)), "set", 0.0, (), "top 10 by attribution, wrong"),),
                answered("standing", 2.03), change=5.14, interval=(4.8, 5.4), p=0.005, flipped=True,
                controls=_controls(rng, 5.14),
                collateral=(Collateral("What color is the shirt?", "red", "blue"),)),
        Steered("second-round", (EditMade((3, 5), "scale", 2.0, ((0.0, 0.0, 90.0, 90.0),), "3, 5"),
                                 EditMade("all", "add", -1.5)),
                answered("sitting", -0.2), "reconstruct", "no-chair", 2.91, 2.78),
    )  # fmt: skip
    doses = tuple(Dose(f, answered("standing" if m > 0 else "sitting", m)) for f, m in
                  ((0.0, 2.03), (0.5, -1.2), (1.0, -3.11), (2.0, -3.6), (4.0, -4.2)))  # fmt: skip
    attributions = tuple(
        Attribution(100 + 37 * i, float(p), float(p * 0.8 + rng.normal(0, 0.05)) if i < 20 else None)
        for i, p in enumerate(rng.normal(0, 0.5, 25))
    )
    made = Provenance(
        "a" * 64, "b" * 64, "c" * 64, "sketchworld@1.0", "d" * 64, "sketchworld/vision.3", "e" * 64, "vision.3",
        "f" * 64, "0" * 64, {"python": "3.11.7", "torch": "2.13.0", "vsp_report": "1.0"}, "cpu", "a processor",
        "float32", 0, "vsp-report run cases/standing-beside-a-chair.yaml", 7.4, "2030-01-31T12:00:00Z",
    )  # fmt: skip
    recording = Recording(
        SCHEMA, "standing-beside-a-chair", "ok", asked(), None, made,
        Picture("images/input.png", 384, 384, "A person in a red shirt stands beside a chair"),
        Grid(SIDE**2, SIDE, SIDE),
        tuple(Token(text, kind, i, -0.2 if kind == "answer" else None)
              for i, (text, kind) in enumerate(zip(WORDS, kinds, strict=True))),
        answered("sitting", -3.11), answered("sitting", -2.98), latents,
        Heatmap(tuple(range(len(WORDS))), tuple(range(29)), 20, "column",
                tuple(replace(g, order=g.order[:29], clusters=g.clusters[:29]) for g in grouped)),
        attributions,
        (Agreement("attribution", 0.94, 0.81, 20, 3), Agreement("attention", 0.35, None, 20, None)),
        steered, (Swept("strongest-ten", doses, 0.25),),
        (Rephrased("other-order", "Is the person standing or sitting?", answered("sitting", -2.5)),
         Rephrased("spelled-out", "Is the person on the chair, or beside it?", answered("beside it", 1.5),
                   ("beside it", "on the chair"))),
        None, MinimalSet((207, 203, 201), answered("standing", 0.1), 9),
        Diagnosis("misleading-cue", (
            Evidence("rephrasing", "No rephrasing is answered rightly.", True),
            Evidence("ablate what supports the wrong answer", "The answer turns.", True, 5.14, 0.005),
            Evidence("amplify what supports the right answer", "No latent supports it.", None)), 41),
        (Repeated(1, {"before.margin": -3.1, "before.answer": "sitting"}),
         Repeated(2, {"before.margin": -3.0, "before.answer": "sitting"})),
    )  # fmt: skip
    arrays = _arrays(np.random.default_rng(1), count)
    arrays = replace(arrays, heatmap_TL=arrays.heatmap_TL[:, :29])
    return replace(recording, **({"arrays": arrays} | changes))


def reconstructing(alone: float = 1.0, with_edits: float = 1.4) -> Recording:
    """A steering that works on the SAE's reconstruction, which by itself has the model say something else."""

    def says(margin: float) -> Answered:
        return answered("standing" if margin > 0 else "sitting", margin)

    def as_far(change: float) -> float:
        return (1 + sum(abs(draw - shift) >= abs(change) for draw in changes)) / (1 + len(changes))

    base, clean = full(), answered("sitting", -3.11)
    shift = alone - clean.margin
    changes = tuple(float(change) for change in shift + np.random.default_rng(2).normal(0, 0.5, 200))
    own = with_edits - alone
    controls = (ControlDraws("latents", changes, 0.005, as_far(own)),)
    steered = Steered("rebuilt", (EditMade(tuple(range(200, 210)), "set", 0.0, (), "top 10"),), says(with_edits),
                      "reconstruct", None, shift + own, own, (own - 1.0, own + 1.0), as_far(own),
                      with_edits > 0, controls)  # fmt: skip
    doses = tuple(Dose(factor, says(margin)) for factor, margin in ((0.0, with_edits), (2.0, alone + 0.2)))
    case = asked(steer={"rebuilt": {"mode": "reconstruct", "edits": [{"latents": [200, 201], "set": 0}]}},
                 sweep={"of": "rebuilt", "factors": [0, 2]}, rephrase=None, expect={})  # fmt: skip
    return replace(base, case=case, clean=clean, reconstructed=says(alone), steered=(steered,),
                   swept=(Swept("rebuilt", doses, None),), rephrased=())  # fmt: skip


def second() -> Recording:
    """`full`, run again with something else in it: the steering does not correct it any more."""
    base = full()
    weaker = (replace(base.steered[1], after=answered("sitting", -1.4), change=1.71, p=0.2, flipped=False),)
    return replace(base, steered=(base.steered[0], *weaker, base.steered[2]),
                   provenance=replace(base.provenance, package_sha="9" * 64))  # fmt: skip


def elsewhere(recording: Recording) -> Recording:
    """The same, but that the model looks at other patches."""
    looking = recording.arrays.predicting_TP[:, ::-1].copy()
    return replace(recording, arrays=replace(recording.arrays, predicting_TP=looking))


def failed() -> Recording:
    trace = 'Traceback (most recent call last):\n  File "<cell 7>", line 2\nSteeringError: no latent has this label'
    message = "cases/cup.yaml:14: steer.no-hand names label hand; no latent has it. Choose another."
    stop = Stop("steer no-hand", message, trace)
    return full(id="failed-in-a-cell", status="error", stop=stop, case=asked(title="A cup that was not finished"),
                steered=(), swept=(), heatmap=None, latents=(), attributions=(), agreements=(), minimal=None,
                diagnosis=None, repeats=(), rephrased=(), arrays=Arrays())  # fmt: skip


def not_run() -> Recording:
    stop = Stop("needs", "It needs a GPU, the model's weights and the picture. Bring them and run it again.")
    case = asked(title="Sitting or standing (LLaVA-NeXT)", model="llava-hf/llama3-llava-next-8b-hf", tags=["paper"])
    return Recording(SCHEMA, "paper-case", "not-run", case, stop)


def classification() -> Recording:
    classes = ("duck", "rabbit", "deer", "elephant", "goat", "pig", "cat")
    clean, after = (0.2, 0.61, 0.08, 0.05, 0.03, 0.02, 0.01), (0.66, 0.15, 0.08, 0.05, 0.03, 0.02, 0.01)
    case = asked(
        title="A duck-rabbit, classified", failure="hidden-cue", prompt=None, rephrase=None, sweep=None,
        controls={"draws": 0}, classify={"classes": list(classes), "templates": ["a picture of a {}"]},
        contrast={"right": "duck", "wrong": "rabbit"},
        image={"scene": {"mode": "hidden-cue", "variation": "duck-cat"}},
        steer={"no-rabbit": [{"latents": {"label": "rabbit"}, "set": 0}]},
        expect={"before": {"answer": "rabbit"}, "after": {"no-rabbit": {"answer": "duck"}}},
    )  # fmt: skip
    steered = Steered("no-rabbit", (EditMade((4, 9), "set", 0.0, (), "label rabbit, top 10"),), answered("duck", 1.48),
                      change=2.6, interval=None, p=None, flipped=True)  # fmt: skip
    return full(
        id="clip-duck-rabbit", case=case, clean=answered("rabbit", -1.12), reconstructed=None, tokens=(), swept=(),
        steered=(steered,), rephrased=(), heatmap=None, attributions=(), agreements=(), minimal=None, repeats=(),
        diagnosis=Diagnosis("hidden-cue"), arrays=Arrays(boxes_P4=_boxes()), latents=(),
        classified=Classified(
            classes, ("a picture of a {}",), (ClassScores("clean", clean), ClassScores("no-rabbit", after))
        ),
    )  # fmt: skip


def hostile() -> Recording:
    """Every text of a recording, from somebody who means ill."""
    base = full()
    case = base.case | {
        "title": EVIL, "prompt": EVIL, "story": f"{EVIL} [x](javascript:alert(3)) `{EVIL}` **{EVIL}**", "system": EVIL,
        "contrast": {"right": EVIL, "wrong": "sitting"}, "model": EVIL,
    }  # fmt: skip
    latents = tuple(replace(one, label=EVIL, references=(Reference(EVIL, 1.0),)) for one in base.latents)
    steered = tuple(
        replace(one, name=f"../../{EVIL}{i}", after=replace(one.after, text=EVIL),
                edits=tuple(replace(edit, asked=EVIL) for edit in one.edits), collateral=(Collateral(EVIL, EVIL, "x"),))
        for i, one in enumerate(base.steered)
    )  # fmt: skip
    return replace(
        base,
        id="../../escaped",
        case=case,
        clean=replace(base.clean, text=EVIL),
        image=replace(base.image, alt=EVIL),
        tokens=tuple(replace(token, text=EVIL) for token in base.tokens),
        latents=latents,
        steered=steered,
        swept=tuple(replace(one, of=f"../{EVIL}") for one in base.swept),
        rephrased=tuple(replace(one, name=EVIL, prompt=EVIL) for one in base.rephrased),
        diagnosis=Diagnosis("undetermined", (Evidence(EVIL, EVIL, False),)),
        provenance=replace(base.provenance, command=EVIL, versions={EVIL: EVIL}),
    )


def save_all(folder: Path, only: tuple[str, ...] = ()) -> Path:
    """The synthetic recordings on disk, by their folder's name."""
    chair, duck = picture(), picture("hidden-cue", "duck-cat")
    made: Mapping[str, tuple[Recording, dict[str, bytes]]] = {
        "standing-beside-a-chair": (full(), {"images/input.png": chair, "notebook.ipynb": b"{}"}),
        "failed-in-a-cell": (failed(), {"images/input.png": chair}),
        "paper-case": (not_run(), {}),
        "clip-duck-rabbit": (classification(), {"images/input.png": duck}),
        "hostile": (hostile(), {"images/input.png": chair}),
    }
    for name, (recording, files) in made.items():
        if not only or name in only:
            save_recording(folder / name, recording, files)
    return folder
