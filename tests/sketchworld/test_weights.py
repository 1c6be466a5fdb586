"""The shipped weights, measured in full: what the model card says is what they do."""

import json
import re

import pytest
from safetensors import safe_open

from vsp_report import paths
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.sae import Sae, quality
from vsp_report.sketchworld import evaluate, rules
from vsp_report.sketchworld.autoencoders import SAES
from vsp_report.sketchworld.planted import MODES
from vsp_report.sketchworld.probe import Probe


@pytest.fixture(scope="module")
def figures(shipped_weights):
    return evaluate.evaluate(shipped_weights, scenes=1000, device="cpu")


@pytest.fixture(scope="module")
def card(shipped_weights) -> dict[str, tuple[float | None, bool]]:
    text = (shipped_weights / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- figures -->")[1].split("<!-- /figures -->")[0]
    rows = re.findall(r"^\| (.+?) \| ([\d.]+|–) \| .+? \| (yes|\*\*no\*\*) \|$", table, flags=re.M)
    return {name: (None if value == "–" else float(value), met == "yes") for name, value, met in rows}


def test_the_card_says_what_is_measured(figures, card):
    """Within what another machine's arithmetic moves: some scenes of a hundred, and more where few fail at all."""
    assert figures.keys() == card.keys()
    for name, figure in figures.items():
        stated = card[name][0]
        if stated is not None and figure["value"] is not None and figures_are_of_many(name, card):
            assert figure["value"] == pytest.approx(stated, abs=0.05), name


def figures_are_of_many(name: str, card: dict[str, tuple[float | None, bool]]) -> bool:
    """A repair is measured on the scenes that fail as planted; of fewer than half of them, one scene weighs much."""
    failing = f"fails as planted: {name.partition(': ')[2]}"
    return failing not in card or card[failing][0] > 0.5


def test_every_goal_that_the_card_calls_met_is_met(figures, card):
    """A value that lies on its goal may fall on either side of it elsewhere."""
    for name, (_, met) in card.items():
        value, sign, goal = figures[name]["value"], *figures[name]["goal"].split()
        if met:
            short = float(goal) - value if sign == ">=" else value - float(goal)
            assert short <= 0.02, name


def test_every_mode_and_variation_is_measured(figures):
    for mode in ("limited-alignment", "misleading-cue", "hidden-cue"):
        assert len(MODES[mode]) >= 4
        for variation in MODES[mode]:
            assert f"fails as planted: {mode}/{variation}" in figures
            if mode != "limited-alignment":
                assert f"corrected by matched random latents: {mode}/{variation}" in figures


def test_all_weights_fit_the_limit_and_are_half_precision(shipped_weights):
    files = [p for p in shipped_weights.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16_000_000
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                slices = [tensors.get_slice(key) for key in tensors.keys()]
                # a bias may stay in full: it is small, and may lie outside of half precision's range
                assert {s.get_dtype() for s in slices if len(s.get_shape()) > 1} == {"F16"}, file


def test_the_training_record_is_beside_the_weights(shipped_weights):
    record = json.loads((shipped_weights / "training.json").read_text())
    assert {"clip", "llava", "saes"} <= record["seconds"].keys()
    assert record["recipe"]["seed"] == 0
    stages = [row["stage"] for row in record["curve"]]
    assert {"tower", "words", "language", *(f"sae {name}" for name in SAES)} <= set(stages)


def test_bundled_names_are_the_folders(shipped_weights):
    assert set(paths.bundled_names()) == {
        "sketchworld",
        "sketchworld-clip",
        *(f"sketchworld/{name}" for name in SAES),
    }
    assert paths.bundled("sketchworld/vision.3") == shipped_weights / "saes" / "vision.3"


def test_an_untrained_autoencoder_explains_less(shipped_weights):
    """The control of every figure about the autoencoder: the same shape, random directions."""
    probe = Probe.load(shipped_weights)
    states = probe.states(probe.pixels([rules.sample_scene(i) for i in range(40)]))[:, 1:].flatten(0, 1)
    untrained = Sae.untrained(0, like=probe.sae)
    assert quality(untrained, states).unexplained_variance > 5 * quality(probe.sae, states).unexplained_variance


@pytest.mark.parametrize("name", SAES)
def test_every_autoencoder_loads_and_knows_its_tap(shipped_weights, name):
    sae = load_sae(shipped_weights / "saes" / name)
    assert (sae.tap, sae.architecture, sae.d_sae) == (
        SAES[name].tap,
        SAES[name].architecture,
        32 * sae.d_in,
    )


def test_tables_can_be_read():
    figures = {"a": {"value": 0.5, "goal": ">= 0.4", "met": True}, "b": {"value": 0.1, "goal": ">= 0.4", "met": False}}
    assert evaluate.table(figures).splitlines()[2:] == [
        "| a | 0.500 | >= 0.4 | yes |",
        "| b | 0.100 | >= 0.4 | **no** |",
    ]
