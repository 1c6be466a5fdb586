"""Training: the hand-made gradients against autograd, then what a short run must achieve."""

from __future__ import annotations

import pytest
import torch

from vsp_report.model import training
from vsp_report.model.sae import quality
from vsp_report.model.training import DEAD_AFTER, train_sae

D, N = 12, 6000


def acts(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of 2 of 24 directions, far from zero and of a scale that no learning rate is made for."""
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, D, generator=g), dim=1)
    on = torch.rand(N, 24, generator=g).argsort(1).argsort(1) < 2
    amounts = on * (0.5 + torch.rand(N, 24, generator=g))
    return ((amounts @ directions + 0.01 * torch.randn(N, D, generator=g)) * 20 + 7).to(dtype)


def learner(k: int, *, dead: int = 0) -> tuple[training._Learner, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x_BD = torch.randn(64, D, generator=g) / D**0.5
    weights = training._initial(x_BD, 48, k, g)
    weights = training._Weights(*(tensor.requires_grad_() for tensor in weights))
    found = training._Learner(weights, torch.float32, k, l1=0.1)
    found.silent_L[:dead] = DEAD_AFTER + 1
    return found, x_BD


def test_sparse_gradients_are_those_of_the_dense_formula():
    sparse, x_BD = learner(5)
    sparse.learn(x_BD, 0, 10)
    encoder_LD, b_enc_L, decoder_LD, b_dec_D = dense = [w.detach().requires_grad_() for w in sparse.weights]
    pre_BL = x_BD @ encoder_LD.T + b_enc_L
    kept_BL = pre_BL >= pre_BL.topk(5).values[:, -1:]
    h_BL = (pre_BL * kept_BL).relu()
    (x_BD - h_BL @ decoder_LD - b_dec_D).square().sum(1).mean().backward()
    for ours, theirs in zip(sparse.weights, dense, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_dead_latents_and_only_they_learn_the_error_that_is_left():
    plain, x_BD = learner(5)
    plain.learn(x_BD, 0, 10)
    helped, _ = learner(5, dead=10)
    step = helped.learn(x_BD, 0, 10)
    extra_LD = helped.weights.decoder_LD.grad - plain.weights.decoder_LD.grad
    assert extra_LD[:10].abs().max() > 0
    torch.testing.assert_close(extra_LD[10:], torch.zeros(38, D))
    assert step.dead_share < 10 / 48  # some of them just fired


def test_relu_gradients_are_those_of_mse_and_l1():
    ours, x_BD = learner(0)
    ours.learn(x_BD, 5, 10)
    encoder_LD, b_enc_L, decoder_LD, b_dec_D = dense = [w.detach().requires_grad_() for w in ours.weights]
    h_BL = (x_BD @ encoder_LD.T + b_enc_L).relu()
    loss_B = (x_BD - h_BL @ decoder_LD - b_dec_D).square().sum(1) + 0.1 * h_BL.abs().sum(1)
    loss_B.mean().backward()
    for weight, reference in zip(ours.weights, dense, strict=True):
        torch.testing.assert_close(weight.grad, reference.grad, rtol=1e-4, atol=1e-6)


def test_resampling_moves_dead_latents_only_and_makes_the_optimiser_forget_them():
    found, x_BD = learner(0, dead=10)
    optimiser = torch.optim.Adam(found.weights, lr=1e-3)
    found.learn(x_BD, 5, 10)
    optimiser.step()
    found.silent_L[:10] = DEAD_AFTER + 1
    before = [weight.detach().clone() for weight in found.weights]
    found.resample(x_BD, optimiser, torch.Generator().manual_seed(0))
    for weight, old in zip(found.weights, before, strict=True):
        assert torch.equal(weight[10:] if len(weight) == 48 else weight, old[10:] if len(old) == 48 else old)
    torch.testing.assert_close(found.weights.decoder_LD[:10].norm(dim=1), torch.ones(10))
    assert not optimiser.state[found.weights.encoder_LD]["exp_avg"][:10].any()
    assert not found.dead_L.any()


def test_the_scale_is_folded_back_exactly():
    g = torch.Generator().manual_seed(2)
    weights = training._Weights(
        *(torch.randn(*shape, generator=g) for shape in ((30, D), (30,), (30, D), (D,)))
    )
    z_PD, mean_D, scale = torch.randn(20, D, generator=g) * 9, torch.arange(D) * 1.0, 0.13
    for k in (0, 4):
        sae = training._finished(weights, mean_D, scale, k, {})
        pre_PL = (z_PD - mean_D) * scale @ weights.encoder_LD.T + weights.b_enc_L
        h_PL = pre_PL.relu()
        if k:
            h_PL = h_PL * (pre_PL >= pre_PL.topk(k).values[:, -1:])
        torch.testing.assert_close(sae.encode(z_PD), h_PL / scale, rtol=1e-4, atol=1e-3)
        expected_PD = (h_PL @ weights.decoder_LD + weights.b_dec_D) / scale + mean_D
        torch.testing.assert_close(sae(z_PD), expected_PD, rtol=1e-4, atol=1e-3)


def test_every_row_is_seen_once_before_any_is_seen_twice():
    rows = list(training._batches(100, 10, 25, torch.Generator().manual_seed(0)))
    assert torch.cat(rows[:10]).sort().values.tolist() == list(range(100))
    assert not torch.equal(rows[0], rows[10])
    few = list(training._batches(7, 10, 3, torch.Generator().manual_seed(0)))
    assert [len(part) for part in few] == [7, 7, 7]


def test_the_first_reconstruction_has_the_right_length():
    x_SD = acts()[:1024] - acts().mean(0)
    for k in (0, 4):
        encoder_LD, b_enc_L, decoder_LD, _ = training._initial(x_SD, 48, k, torch.Generator().manual_seed(0))
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


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_seed_decides_everything(architecture):
    options = {"architecture": architecture, "expansion": 2, "k": 3, "steps": 20, "batch": 128}
    state = torch.random.get_rng_state()
    a, b, c = (train_sae(acts(), seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(a.W_enc, b.W_enc) and torch.equal(a.b_dec, b.b_dec)
    assert not torch.equal(a.W_enc, c.W_enc)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global one is left alone


def test_a_constant_and_a_few_rows_do_not_break_it():
    for rows in (torch.full((50, D), 3.0), acts()[:3]):
        assert train_sae(rows, expansion=2, k=2, steps=5, batch=16)(rows).isfinite().all()


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="trained here are 'topk' and 'standard'"):
        train_sae(acts(), architecture="gated")
    with pytest.raises(ValueError, match=r"of shape \(6000,\); expected \(rows, width\)"):
        train_sae(acts()[:, 0])
    with pytest.raises(ValueError, match="k is 99"):
        train_sae(acts(), expansion=2, k=99)
    with pytest.raises(ValueError, match="NaN or infinite"):
        train_sae(torch.full((4, D), float("nan")))
