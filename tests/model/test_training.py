"""Training: the hand-made gradients against autograd, then what a short run must achieve."""

from __future__ import annotations

import pytest
import torch

from vsp_report.model import learning, training
from vsp_report.model.learning import DEAD_AFTER, Learner, Weights
from vsp_report.model.sae import quality
from vsp_report.model.training import Recipe, Trainer, UnusableRecipe, train_sae

D, N = 12, 6000


def acts(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of 2 of 24 directions, far from zero and of a scale that no learning rate is made for."""
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, D, generator=g), dim=1)
    on = torch.rand(N, 24, generator=g).argsort(1).argsort(1) < 2
    amounts = on * (0.5 + torch.rand(N, 24, generator=g))
    return ((amounts @ directions + 0.01 * torch.randn(N, D, generator=g)) * 20 + 7).to(dtype)


def learner(k: int, *, dead: int = 0, **options) -> tuple[Learner, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x_BD = torch.randn(64, D, generator=g) / D**0.5
    weights = learning.first_weights(x_BD, 48, k, g)
    if not k:  # first biases put one row of each latent on the edge of relu, where rounding decides
        weights = weights._replace(b_enc_L=weights.b_enc_L + 1e-3)
    weights = Weights(*(tensor.requires_grad_() for tensor in weights))
    found = Learner(weights, torch.float32, k=k, l1=0.1, **options)
    found.silent_L[:dead] = DEAD_AFTER + 1
    return found, x_BD


def copies(found: Learner) -> list[torch.Tensor]:
    return [weight.detach().clone().requires_grad_() for weight in found.weights]


def hold_gradients(found: Learner, dense: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found.weights, dense, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_sparse_gradients_are_those_of_the_dense_formula():
    sparse, x_BD = learner(5)
    told = sparse.learn(x_BD)
    encoder_LD, b_enc_L, decoder_LD, b_dec_D = dense = copies(sparse)
    pre_BL = x_BD @ encoder_LD.T + b_enc_L
    kept_BL = pre_BL >= pre_BL.topk(5).values[:, -1:]
    h_BL = (pre_BL * kept_BL).relu()
    loss = (x_BD - h_BL @ decoder_LD - b_dec_D).square().sum(1).mean()
    loss.backward()
    hold_gradients(sparse, dense)
    assert told.loss == pytest.approx(loss.item())


@pytest.mark.parametrize("prefixes", [(), (6, 20)])
def test_a_budget_per_batch_keeps_its_largest_and_every_prefix_explains_alone(prefixes):
    ours, x_BD = learner(5, over_batch=True, prefixes=prefixes)
    with torch.no_grad():
        ours.weights.b_enc_L.add_(torch.linspace(-0.3, 0.3, 48))
        x_BD[:8] *= 6  # greedy rows: more than their candidates' share
    told = ours.learn(x_BD)
    encoder_LD, b_enc_L, decoder_LD, b_dec_D = dense = copies(ours)
    pre_BL = x_BD @ encoder_LD.T + b_enc_L
    least = pre_BL.flatten().topk(5 * len(x_BD)).values[-1]
    h_BL = (pre_BL * (pre_BL >= least)).relu()
    assert int((h_BL > 0).sum(1).max()) > 20  # the quick way would have cut it
    losses = [(x_BD - h_BL[:, :end] @ decoder_LD[:end] - b_dec_D).square().sum(1).mean() for end in (*prefixes, 48)]
    torch.stack(losses).mean().backward()
    hold_gradients(ours, dense)
    assert told.l0 == pytest.approx(float((h_BL > 0).sum(1).float().mean()))
    torch.testing.assert_close(ours.threshold, h_BL[h_BL > 0].min().detach())


@pytest.mark.parametrize("louder", [0.01, 1.0, 100.0])
def test_a_batchs_largest_are_found_whatever_the_rows_say_that_suggest_a_bound(louder):
    found, x_BD = learner(5, over_batch=True)
    x_BD[:: learning.SOME_ROWS] *= louder
    values_E, latents_E, rows_E = found._selected(x_BD)
    pre_BL = (x_BD @ found.weights.encoder_LD.T + found.weights.b_enc_L).detach()
    largest = pre_BL.flatten().topk(5 * len(x_BD)).indices.sort().values
    assert torch.equal(rows_E * 48 + latents_E, largest)
    torch.testing.assert_close(values_E.detach(), pre_BL.flatten()[largest].relu())


def test_the_threshold_is_remembered_over_batches():
    ours, x_BD = learner(5, over_batch=True)
    ours.learn(x_BD)
    first = float(ours.threshold)
    ours.learn(10 * x_BD)
    assert first < float(ours.threshold) < 1.2 * first


def test_dead_latents_and_only_they_learn_the_error_that_is_left():
    plain, x_BD = learner(5)
    plain.learn(x_BD)
    helped, _ = learner(5, dead=10)
    told = helped.learn(x_BD)
    extra_LD = helped.weights.decoder_LD.grad - plain.weights.decoder_LD.grad
    assert extra_LD[:10].abs().max() > 0
    torch.testing.assert_close(extra_LD[10:], torch.zeros(38, D))
    helped.count(told.fired_L, len(x_BD))
    assert int(helped.dead_L.sum()) < 10  # some of them just fired
    left, _ = learner(5, dead=10, auxiliary=False)
    left.learn(x_BD)
    torch.testing.assert_close(left.weights.decoder_LD.grad, plain.weights.decoder_LD.grad)


@pytest.mark.parametrize("block", [5, learning.BLOCK])
def test_relu_gradients_are_those_of_mse_and_l1(block, monkeypatch):
    monkeypatch.setattr(learning, "BLOCK", block)
    ours, x_BD = learner(0)
    told = ours.learn(x_BD)
    encoder_LD, b_enc_L, decoder_LD, b_dec_D = dense = copies(ours)
    h_BL = (x_BD @ encoder_LD.T + b_enc_L).relu()
    loss_B = (x_BD - h_BL @ decoder_LD - b_dec_D).square().sum(1) + 0.1 * h_BL.abs().sum(1)
    loss_B.mean().backward()
    hold_gradients(ours, dense)
    assert told.loss == pytest.approx(loss_B.mean().item(), rel=1e-5)
    assert told.l0 == float((h_BL > 0).sum()) / len(x_BD)
    assert torch.equal(told.fired_L, (h_BL > 0).any(0))


@pytest.mark.parametrize("k", [0, 5])
def test_resampling_moves_dead_latents_only_and_makes_the_optimiser_forget_them(k):
    found, x_BD = learner(k, dead=10)
    optimiser = torch.optim.Adam(found.weights, lr=1e-3)
    found.learn(x_BD)
    optimiser.step()
    found.silent_L[:10] = DEAD_AFTER + 1
    before = [weight.detach().clone() for weight in found.weights]
    found.resample(x_BD, optimiser, torch.Generator().manual_seed(0))
    for weight, old in zip(found.weights, before, strict=True):
        assert torch.equal(weight[10:] if len(weight) == 48 else weight, old[10:] if len(old) == 48 else old)
    torch.testing.assert_close(found.weights.decoder_LD[:10].norm(dim=1), torch.ones(10))
    assert not optimiser.state[found.weights.encoder_LD]["exp_avg"][:10].any()
    assert not found.dead_L.any()


def test_no_two_dead_latents_are_born_of_one_row_while_there_are_enough():
    """They would learn the same, step by step, and be one latent twice."""
    found, x_BD = learner(5, dead=24)
    likeness = []
    for rows_BD in (x_BD, x_BD[:8]):
        assert (len(rows_BD) >= 24) == (rows_BD is x_BD)
        found.silent_L[:24] = DEAD_AFTER + 1
        found.revive(rows_BD, torch.Generator().manual_seed(0))
        unit_KD = found.weights.decoder_LD[:24].detach()
        likeness.append((unit_KD @ unit_KD.T).fill_diagonal_(0).max().item())
    assert likeness[0] < 0.999 and likeness[1] == pytest.approx(1)


@pytest.mark.parametrize("whiten", [0.0, 0.5])
@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_the_scale_is_folded_back_exactly(architecture, whiten):
    g = torch.Generator().manual_seed(2)
    trainer = Trainer(Recipe(architecture, expansion=3, k=4, whiten=whiten), acts()[:100])
    with torch.no_grad():
        for weight in trainer.weights:
            weight.copy_(torch.randn(weight.shape, generator=g))
    trainer.scale, trainer.mean_D = 0.13, torch.arange(D) * 1.0
    trainer.learner.threshold = torch.tensor(0.7)
    sae, weights = trainer.finished(), trainer.weights
    there_DD, back_DD = (torch.eye(D), torch.eye(D)) if not whiten else (trainer.there_DD, trainer.back_DD)
    z_PD = torch.randn(20, D, generator=g) * 9
    x_PD = (z_PD - trainer.mean_D) @ there_DD * 0.13
    pre_PL = (x_PD @ weights.encoder_LD.T + weights.b_enc_L).detach()
    h_PL = pre_PL.relu()
    if architecture == "topk":
        h_PL = h_PL * (pre_PL >= pre_PL.topk(4).values[:, -1:])
    if architecture == "batchtopk":
        h_PL = h_PL * (pre_PL > 0.7)
    assert torch.equal(sae.encode(z_PD) > 0, h_PL > 0)
    if not whiten:
        torch.testing.assert_close(sae.encode(z_PD), h_PL / 0.13, rtol=1e-4, atol=1e-3)
    expected_PD = (h_PL @ weights.decoder_LD + weights.b_dec_D).detach() / 0.13 @ back_DD + trainer.mean_D
    torch.testing.assert_close(sae(z_PD), expected_PD, rtol=1e-3, atol=3e-3)


def test_whitening_evens_directions_out_and_reports_raw_variance():
    skewed = acts() * torch.tensor([30.0] * 3 + [1.0] * 9)
    for whiten, ratio in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        there_DD, back_DD = training._evened(skewed - skewed.mean(0), whiten)
        spread = torch.linalg.eigvalsh(torch.cov(((skewed - skewed.mean(0)) @ there_DD).T)).log()
        raw = torch.linalg.eigvalsh(torch.cov(skewed.T)).log()
        assert float(spread[-1] - spread[0]) == pytest.approx(ratio * float(raw[-1] - raw[0]), abs=0.01)
        torch.testing.assert_close(there_DD @ back_DD, torch.eye(D), rtol=1e-3, atol=1e-4)
    told = []
    options = {"architecture": "batchtopk", "expansion": 4, "k": 4, "steps": 200, "batch": 512, "lr": 5e-3}
    sae = train_sae(skewed, whiten=0.7, on_step=told.append, **options)
    torch.testing.assert_close(sae.directions.norm(dim=1), torch.ones(48))
    assert quality(sae, skewed).unexplained_variance == pytest.approx(told[-1].unexplained_variance, rel=0.5)


def test_every_row_is_seen_once_before_any_is_seen_twice():
    rows = list(training._batches(100, 10, 25, torch.Generator().manual_seed(0)))
    assert torch.cat(rows[:10]).sort().values.tolist() == list(range(100))
    assert not torch.equal(rows[0], rows[10])
    few = list(training._batches(7, 10, 3, torch.Generator().manual_seed(0)))
    assert [len(part) for part in few] == [7, 7, 7]


def test_the_first_reconstruction_has_the_right_length():
    x_SD = acts()[:1024] - acts().mean(0)
    for k in (0, 4):
        encoder_LD, b_enc_L, decoder_LD, _ = learning.first_weights(x_SD, 48, k, torch.Generator().manual_seed(0))
        h_SL = (x_SD @ encoder_LD.T + b_enc_L).relu()
        h_SL = h_SL * (h_SL >= h_SL.topk(k or 48).values[:, -1:])
        error = (x_SD - h_SL @ decoder_LD).square().sum() / x_SD.square().sum()
        assert error < 0.8
        torch.testing.assert_close(decoder_LD.norm(dim=1), torch.ones(48))


def test_the_learning_rate_warms_up_and_decays():
    rates = [training._schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == 1.0 and rates[-1] < 0.05
    assert rates[10:70] == [1.0] * 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_short_topk_run_explains_the_data_with_few_latents(dtype):
    told = []
    sae = train_sae(acts(dtype), expansion=4, k=4, steps=400, batch=512, lr=5e-3, seed=1, on_step=told.append)
    found = quality(sae, acts(dtype))
    assert found.unexplained_variance < 0.05 and found.mean_l0 <= 4 and found.dead_share <= 0.15
    torch.testing.assert_close(sae.directions.norm(dim=1), torch.ones(48))
    assert [step.step for step in told] == list(range(400))
    assert told[-1].unexplained_variance < told[0].unexplained_variance
    assert sae.provenance["seed"] == 1 and (sae.d_in, sae.d_sae, sae.k) == (D, 48, 4)


def test_a_short_relu_run_trades_latents_for_error():
    loose, tight = (
        quality(
            train_sae(acts(), architecture="standard", expansion=4, l1=l1, steps=400, batch=512, lr=5e-3),
            acts(),
        )
        for l1 in (0.01, 0.1)
    )
    assert loose.unexplained_variance < tight.unexplained_variance < 0.3
    assert tight.mean_l0 < loose.mean_l0
    assert tight.dead_share <= 0.25


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_a_budget_per_batch_is_kept_by_the_threshold_that_is_left_behind(architecture):
    options = {"expansion": 4, "k": 4, "steps": 400, "batch": 512, "lr": 5e-3, "seed": 1}
    sae = train_sae(acts(), architecture=architecture, **options)
    found = quality(sae, acts())
    assert sae.architecture == architecture and bool((sae.threshold > 0).all())
    assert found.unexplained_variance < 0.1 and 3 <= found.mean_l0 <= 5.5 and found.dead_share <= 0.25


def test_the_first_latents_of_a_matryoshka_explain_more_than_the_first_of_any():
    options = {"expansion": 4, "k": 4, "steps": 300, "batch": 512, "lr": 5e-3, "seed": 1}

    def left_by_the_first(sae, n=8):
        h_PL = sae.encode(acts())
        h_PL[:, n:] = 0
        return float((sae.decode(h_PL) - acts()).square().sum() / (acts() - acts().mean(0)).square().sum())

    nested = train_sae(acts(), architecture="matryoshka", prefixes=(8, 24), **options)
    plain = train_sae(acts(), architecture="batchtopk", **options)
    assert left_by_the_first(nested) < 0.75 * left_by_the_first(plain)
    assert nested.provenance["prefixes"] == [8, 24] and "l1" not in nested.provenance


@pytest.mark.parametrize("architecture", training.TRAINED)
def test_a_seed_decides_everything(architecture):
    options = {"architecture": architecture, "expansion": 2, "k": 3, "steps": 20, "batch": 128}
    state = torch.random.get_rng_state()
    a, b, c = (train_sae(acts(), seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(a.W_enc, b.W_enc) and torch.equal(a.b_dec, b.b_dec)
    assert not torch.equal(a.W_enc, c.W_enc)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global one is left alone


@pytest.mark.parametrize("dead", ["auxiliary", "revive", "resample"])
@pytest.mark.parametrize("architecture", training.TRAINED)
def test_a_trainer_that_is_put_back_goes_on_as_if_nothing_had_been(architecture, dead, monkeypatch):
    if dead not in training.DEAD[architecture]:
        return  # not trained
    monkeypatch.setattr(learning, "DEAD_AFTER", 60)
    recipe = Recipe(architecture, expansion=16, k=3, l1=1.0, steps=16, batch=20, seed=4, dead=dead, whiten=0.3)
    rows, whole, first = acts()[:320].split(20), Trainer(recipe, acts()), Trainer(recipe, acts())
    told = [whole.step(part) for part in rows]
    assert any(one.dead_share > 0 for one in told)  # or no way of helping them was tried
    stop = 14 if dead == "revive" else 7  # in its second life, which the last three steps are
    for part in rows[:stop]:
        first.step(part)
    second = Trainer(recipe, acts()[:50])
    second.restore(first.state())
    assert [second.step(part) for part in rows[stop:]] == told[stop:]
    for ours, theirs in zip(whole.weights, second.weights, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(whole.generator.get_state(), second.generator.get_state())


def test_in_the_second_life_the_living_stay_to_the_bit_and_the_dead_learn(monkeypatch):
    monkeypatch.setattr(learning, "DEAD_AFTER", 2000)
    recipe = Recipe("topk", expansion=16, k=3, steps=900, batch=200, seed=1, dead="revive")
    trainer, rows = Trainer(recipe, acts()), acts().split(200)
    end = recipe.first_life
    assert end == 750
    told = [trainer.step(rows[step % 30]) for step in range(end)]
    dead_L, before = trainer.learner.dead_L.clone(), [weight.detach().clone() for weight in trainer.weights]
    assert told[-1].dead_share == float(dead_L.float().mean()) > 0.2
    told += [trainer.step(rows[step % 30]) for step in range(end, recipe.steps)]
    for weight, old in zip(trainer.weights[:3], before, strict=False):
        assert torch.equal(weight[~dead_L], old[~dead_L])
        assert not (weight[dead_L] == old[dead_L]).all()
    assert torch.equal(trainer.weights.b_dec_D, before[3])
    torch.testing.assert_close(trainer.weights.decoder_LD.norm(dim=1), torch.ones(len(dead_L)))
    assert told[-1].dead_share < 0.5 * told[end - 1].dead_share
    assert told[-1].unexplained_variance < 2 * told[end - 1].unexplained_variance


def test_what_lives_in_another_stays_and_the_rest_learns_what_that_leaves_over():
    options = {"expansion": 16, "steps": 600, "batch": 200, "seed": 1}
    first = train_sae(acts(), architecture="standard", l1=1.5, dead="leave", **options)
    second = train_sae(acts(), k=3, dead="revive", onto=first, **options)
    in_a_batch_L = options["batch"] * (first.encode(acts()) > 0).float().mean(0)
    living_L, dead_L = in_a_batch_L > 1.3, in_a_batch_L < 0.7
    assert 0.2 < float(living_L.float().mean()) < 0.8 and bool(dead_L.any())
    for name in ("W_enc", "W_dec", "b_enc"):
        mine, theirs = (getattr(sae, name) for sae in (second, first))
        mine, theirs = (mine.T, theirs.T) if name == "W_enc" else (mine, theirs)
        torch.testing.assert_close(mine[living_L], theirs[living_L], rtol=1e-4, atol=1e-3)
        assert not torch.isclose(mine[dead_L], theirs[dead_L]).all()
    left, again = quality(first, acts()), quality(second, acts())
    assert again.unexplained_variance < 0.4 * left.unexplained_variance
    assert again.mean_l0 <= 3


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"dead": "auxiliary"}, "is for dead: revive"),
        ({"architecture": "batchtopk"}, "is for dead: revive"),
        ({"whiten": 0.3, "dead": "revive"}, "rows as they are"),
        ({"expansion": 8, "dead": "revive"}, "has 48 latents of width 12; expected 96 of 12"),
    ],
)
def test_what_nothing_can_be_trained_onto_is_said(given, fault):
    first = train_sae(acts(), architecture="standard", expansion=4, steps=2)
    with pytest.raises(UnusableRecipe, match=fault):
        train_sae(acts(), onto=first, **{"expansion": 4, "k": 3, "steps": 2, **given})


def test_a_constant_and_a_few_rows_do_not_break_it():
    for rows in (torch.full((50, D), 3.0), acts()[:3]):
        assert train_sae(rows, expansion=2, k=2, steps=5, batch=16)(rows).isfinite().all()


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="trained here are 'topk', 'standard', 'batchtopk' and 'matryoshka'"):
        train_sae(acts(), architecture="gated")
    with pytest.raises(ValueError, match=r"of shape \(6000,\); expected \(rows, width\)"):
        train_sae(acts()[:, 0])
    with pytest.raises(ValueError, match="k is 99"):
        train_sae(acts(), expansion=2, k=99)
    with pytest.raises(ValueError, match="NaN or infinite"):
        train_sae(torch.full((4, D), float("nan")))


@pytest.mark.parametrize(
    ("given", "name", "fault"),
    [
        ({"k": 0}, "k", "is 0"),
        ({"expansion": 0}, "expansion", "is 0"),
        ({"lr": 0.0}, "lr", "is 0.0"),
        ({"l1": float("nan"), "architecture": "standard"}, "l1", "is nan"),
        ({"architecture": "standard", "prefixes": (4,)}, "prefixes", "do nothing for 'standard'"),
        ({"prefixes": (8, 4)}, "prefixes", "are 8,4"),
        ({"prefixes": (8, 400)}, "prefixes", "are 8,400"),
        ({"architecture": "standard", "dead": "auxiliary"}, "dead", "is 'auxiliary'"),
        ({"architecture": "standard", "dead": "revive"}, "dead", "is 'revive'"),
        ({"architecture": "batchtopk", "dead": "revive"}, "dead", "is 'revive'"),
        ({"dead": "bury"}, "dead", "is 'bury'"),
        ({"whiten": 1.5}, "whiten", "is 1.5"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(given, name, fault):
    with pytest.raises(UnusableRecipe) as caught:
        Recipe(**{"k": 4, **given}).completed(D)
    assert (caught.value.name, caught.value.fault) == (name, fault) and caught.value.remedy


def test_a_recipe_fills_in_what_it_leaves_open():
    found = Recipe("matryoshka", expansion=32, k=4).completed(112)
    assert found.prefixes == (56, 224, 896) and found.dead == "auxiliary"
    assert Recipe("standard").completed(112).dead == "resample"
