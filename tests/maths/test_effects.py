"""Effects against slow, independent references."""

import numpy as np
import pytest
from scipy.stats import kstest

from vsp_report.maths import effects

# --- matched controls --------------------------------------------------------------------------------------------


def _population(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    generator = np.random.default_rng(seed)
    mass_L = np.exp(generator.normal(0, 1, n)) * (generator.random(n) < 0.8)
    return mass_L, np.where(mass_L > 0, generator.integers(1, 100, n) / 100, 0), generator


def _matched(chosen, mass_L, frequency_L, draws: int, seed: int, apart=(), living_L=None) -> list[tuple[int, ...]]:
    """The sets of one part."""
    part = effects.Part(tuple(map(int, chosen)), mass_L, frequency_L, seed, living_L)
    return [one for (one,) in effects.matched_sets([part], draws, apart).sets]


def test_controls_are_other_active_latents_as_many_and_alike() -> None:
    mass_L, frequency_L, generator = _population(0)
    active = np.flatnonzero(mass_L > 0)
    chosen = tuple(int(k) for k in generator.choice(active, 8, replace=False))
    apart = tuple(int(k) for k in active[:5])
    found = effects.matched_sets([effects.Part(chosen, mass_L, frequency_L, 1)], 50, apart)
    sets = [one for (one,) in found.sets]
    assert len(sets) == len(set(sets)) == 50
    for one in sets:
        assert len(set(one)) == 8 and not set(one) & {*chosen, *apart} and (mass_L[list(one)] > 0).all()
    assert 0.7 < found.mass_ratio < 1.4
    masses = [mass_L[list(one)].sum() for one in sets]
    assert found.mass_ratio == pytest.approx(np.mean(masses) / mass_L[list(chosen)].sum())
    assert np.std(masses) < mass_L[generator.choice(active, (500, 8))].sum(1).std() / 2


def test_the_most_active_have_controls_that_are_less_active_and_that_is_told() -> None:
    mass_L, frequency_L, _ = _population(3)
    strongest = tuple(map(int, np.argsort(-mass_L)[:10]))
    found = effects.matched_sets([effects.Part(strongest, mass_L, frequency_L, 0)], 20)
    assert found.mass_ratio < 0.8


def test_controls_are_the_same_for_a_seed_and_others_for_another() -> None:
    mass_L, frequency_L, _ = _population(2)
    chosen = np.flatnonzero(mass_L > 0)[:4]
    first, again, other = (_matched(chosen, mass_L, frequency_L, 20, s) for s in (5, 5, 6))
    assert first == again != other
    assert first[:8] == _matched(chosen, mass_L, frequency_L, 8, 5)


def test_there_are_no_controls_without_enough_others() -> None:
    assert _matched((0, 1), np.array([1.0, 1, 1, 1, 1, 0]), np.ones(6), 5, 0) == []
    assert _matched((5,), np.array([1.0, 1, 1, 1, 1, 0]), np.ones(6), 5, 0) == []
    assert _matched((), np.ones(6), np.ones(6), 5, 0) == [] and effects.matched_sets([], 5).sets == ()
    assert len(_matched((0, 1), np.ones(6), np.ones(6), 5, 0)) == 5


def test_no_set_is_two_controls() -> None:
    """Of two from four others there are six; however many draws are asked for, there are not more, and none lacks."""
    sets = _matched((0, 1), np.ones(6), np.ones(6), 200, 0)
    assert sorted(sets) == [(2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 5)]


@pytest.mark.parametrize("draws", [5, 19, 200])
def test_one_latent_has_as_many_controls_as_can_be_sure_at_5_percent_and_claims_no_more(draws: int) -> None:
    mass_L, frequency_L, _ = _population(4)
    chosen = int(np.flatnonzero(mass_L > 0)[7])
    sets = _matched([chosen], mass_L, frequency_L, draws, 1)
    assert len(sets) == len(set(sets)) == min(draws, 19)
    assert effects.permutation_p(9.0, [0.0] * len(sets)) >= 0.05
    if draws >= 19:  # those that are most like it
        other = np.array([k for k in np.flatnonzero(mass_L > 0) if k != chosen])
        spread = [np.log(x_L[other]).std() for x_L in (mass_L, frequency_L)]
        pairs = zip((mass_L, frequency_L), spread, strict=True)
        apart = sum(np.abs(np.log(x_L[other] / x_L[chosen])) / wide for x_L, wide in pairs)
        assert {k for (k,) in sets} == set(other[np.argsort(apart)[:19]].tolist())


def test_sets_of_several_parts_are_different_together() -> None:
    mass_L, frequency_L, _ = _population(5)
    one, other = (int(k) for k in np.flatnonzero(mass_L > 0)[:2])
    parts = [effects.Part((one,), mass_L, frequency_L, 0), effects.Part((other,), mass_L, frequency_L, 1000)]
    sets = effects.matched_sets(parts, 100).sets
    assert len(sets) == len(set(sets)) == 100
    assert not {one, other} & {k for pair in sets for latents in pair for k in latents}
    nothing = effects.Part((), mass_L, frequency_L, 2000)
    assert all(pair[1] == () for pair in effects.matched_sets([parts[0], nothing], 10).sets)


@pytest.mark.parametrize("seed", range(5))
def test_parts_draw_apart_as_they_were_chosen_apart(seed: int) -> None:
    """What one part of a control takes away, another must not strengthen; but a latent that both parts name, each in a
    region of its own, may be stood for by one latent in both."""
    mass_L, frequency_L, generator = _population(seed, 60)
    living_L = np.ones(len(mass_L), bool)
    picked = [int(k) for k in generator.choice(np.flatnonzero(mass_L > 0), 9, replace=False)]
    quiet = [int(k) for k in np.flatnonzero(mass_L == 0)[:2]]
    parts = [effects.Part(picked[:3], mass_L, frequency_L, 0), effects.Part(picked[3:6], mass_L, frequency_L, 1),
             effects.Part([*picked[6:], *quiet], mass_L, frequency_L, 2, living_L)]  # fmt: skip
    sets = effects.matched_sets(parts, 200).sets
    assert len(sets) == 200
    assert all(len({*one, *two, *three}) == len(one) + len(two) + len(three) == 11 for one, two, three in sets)
    twice = [effects.Part(picked[:3], mass_L, frequency_L, 0), effects.Part(picked[:3], mass_L, frequency_L, 1)]
    assert any({*one} & {*two} for one, two in effects.matched_sets(twice, 50).sets)
    tight = np.r_[np.ones(11), np.zeros(9)]  # three others for the first part leave two for the second
    parts = [effects.Part(chosen, tight, tight, 0) for chosen in ((0, 1, 2), (3, 4, 5))]
    assert effects.matched_sets(parts, 5).sets == ()


def test_silent_latents_have_silent_ones_that_live_beside_them() -> None:
    mass_L, frequency_L, _ = _population(6)
    silent, active = np.flatnonzero(mass_L == 0), np.flatnonzero(mass_L > 0)
    living_L = np.zeros(len(mass_L), bool)
    living_L[silent[:20]] = True
    chosen = (*map(int, active[:3]), *map(int, silent[:4]))
    sets = _matched(chosen, mass_L, frequency_L, 30, 0, living_L=living_L)
    assert len(sets) == 30
    for one in sets:
        assert len(set(one)) == len(chosen) and not set(one) & set(chosen)
        assert sum(mass_L[k] > 0 for k in one) == 3 and all(living_L[k] for k in one if mass_L[k] == 0)
    living_L[silent[6:]] = False  # too few that are known to live: nothing is claimed
    assert _matched(chosen, mass_L, frequency_L, 30, 0, living_L=living_L) == []
    assert all(len(one) == 3 for one in _matched(chosen, mass_L, frequency_L, 30, 0))


# --- how sure ----------------------------------------------------------------------------------------------------


def test_p_counts_as_its_definition_says_and_is_never_zero() -> None:
    assert effects.permutation_p(2.0, [1.0, -3.0, 2.0, 0.0]) == 3 / 5
    assert effects.permutation_p(9.0, [1.0] * 99) == 0.01
    assert effects.permutation_p(0.0, [1.0] * 99) == 1.0
    assert effects.permutation_p(1.0, []) is None


def _p_of(seed: int, planted: float = 0.0) -> float:
    """A case in which nothing is planted: effects have nothing to do with which latents are chosen."""
    mass_L, frequency_L, generator = _population(seed, 160)
    effect_L = mass_L * generator.normal(0, 1, len(mass_L))
    chosen = generator.choice(np.flatnonzero(mass_L > 0), 5, replace=False)
    sets = _matched(chosen, mass_L, frequency_L, 99, seed)
    spread = float(np.std([effect_L[list(one)].sum() for one in sets]))
    change = effect_L[chosen].sum()
    change += np.sign(change) * planted * spread
    return effects.permutation_p(change, [effect_L[list(one)].sum() for one in sets])


def test_p_is_uniform_when_nothing_is_planted() -> None:
    p_N = np.array([_p_of(seed) for seed in range(400)])
    # Spread over the step of 1/100 below each value, a fair p is exactly uniform.
    p_N = p_N - np.random.default_rng(0).random(400) / 100
    assert kstest(p_N, "uniform").pvalue > 0.01
    assert (p_N <= 0.05).mean() < 0.09


def test_p_of_a_single_latent_is_as_uniform() -> None:
    """Where controls that were drawn twice counted twice, one in sixteen had p = 0.005."""
    p_N = []
    for seed in range(300):
        mass_L, frequency_L, generator = _population(seed, 40)
        effect_L = generator.normal(0, 1, len(mass_L))
        chosen = int(generator.choice(np.flatnonzero(mass_L > 0)))
        sets = _matched([chosen], mass_L, frequency_L, 200, seed)
        p_N.append(effects.permutation_p(effect_L[chosen], [effect_L[k] for (k,) in sets]))
    p_N = np.array(p_N)
    assert p_N.min() >= 1 / 20 and (p_N <= 0.05).mean() < 0.09
    assert kstest(p_N - np.random.default_rng(0).random(300) / 20, "uniform").pvalue > 0.01


def test_a_planted_effect_of_four_spreads_is_found() -> None:
    """Power: at least nine in ten at the level of 5 %."""
    assert np.mean([_p_of(seed, 4.0) <= 0.05 for seed in range(100)]) >= 0.9


def test_the_best_of_many_has_to_be_compared_with_the_best_of_many() -> None:
    """Where nothing is planted, a search for the strongest beats sets drawn by chance nearly always, which would be a
    finding in every case. Among searches through as many others it is one like them, and p is uniform."""
    by_chance, as_hard = [], []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        effect_NL = generator.normal(0, 1, (20, 120))
        best_N = np.sort(effect_NL, axis=1)[:, -5:].sum(1)
        sets = [generator.choice(120, 5, replace=False) for _ in range(19)]
        by_chance.append(effects.permutation_p(best_N[0], [effect_NL[0, one].sum() for one in sets]))
        as_hard.append(effects.permutation_p(best_N[0], best_N[1:]))
    assert np.mean(np.array(by_chance) <= 0.05) > 0.95
    p_N = np.array(as_hard) - np.random.default_rng(0).random(300) / 20
    assert kstest(p_N, "uniform").pvalue > 0.01


@pytest.mark.parametrize("draws", [19, 40, 100, 199])
def test_zero_lies_outside_the_interval_exactly_where_p_is_at_most_5_percent(draws: int) -> None:
    generator = np.random.default_rng(draws)
    controls = generator.normal(0, 1, draws)
    for change in np.concatenate([generator.normal(0, 3, 300), controls[:10]]):
        low, high = effects.beyond_controls(change, controls)
        assert low <= change <= high
        outside = not low <= 0 <= high
        assert outside == (effects.permutation_p(change, controls) <= 0.05 + 1e-9)


def test_few_draws_make_no_interval() -> None:
    assert effects.beyond_controls(1.0, np.zeros(18)) is None
    assert effects.beyond_controls(1.0, np.zeros(19)) == (1.0, 1.0)


# --- flips -------------------------------------------------------------------------------------------------------


def test_flip_share_counts_crossings_of_zero_only() -> None:
    assert effects.flip_share(-2.0, [1.0, 3.0, -5.0, 2.5]) == 0.5
    assert effects.flip_share(2.0, [-1.0, 5.0]) == 0.0
    assert effects.flip_share(2.0, []) is None


@pytest.mark.parametrize(
    ("margins", "point"),
    [
        ([3.0, 1.0, -1.0, -2.0, -3.0], 0.75),
        ([-1.0, -1.0, -1.0, 1.0, 2.0], 1.5),
        ([3.0, 1.0, -1.0, 3.0, 3.0], 1.25),
        ([-1.0] * 5, None),
        ([1.0, -1.0, 1.0, 1.0, 1.0], 0.75),
    ],
)
def test_flip_point_is_the_nearest_crossing_seen_from_one(margins: list[float], point: float | None) -> None:
    assert effects.flip_point([0, 0.5, 1, 2, 4], margins) == (None if point is None else pytest.approx(point))


def test_flip_point_finds_a_straight_lines_zero_whatever_the_steps() -> None:
    generator = np.random.default_rng(4)
    for zero in (-1.5, 0.3, 0.99, 1.01, 2.2):
        factors = np.unique(np.append(generator.uniform(-3, 4, 6), [-3, 1, 4]))
        assert effects.flip_point(factors, 2 * (factors - zero)) == pytest.approx(zero)
