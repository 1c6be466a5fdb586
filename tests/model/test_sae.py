"""Sae: laws first, then each architecture against its formula written out row by row."""

from __future__ import annotations

import pytest
import torch

from vsp_report.model.sae import ARCHITECTURES, Sae, quality

D, L, P = 6, 20, 33


def make(architecture: str, seed: int = 0, **changes) -> Sae:
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g)

    parts = {"W_enc": random(D, L), "W_dec": random(L, D), "b_dec": random(D)}
    parts["b_enc"] = random(L)
    parts["threshold"] = random(L).abs() if architecture in ("batchtopk", "jumprelu", "matryoshka") else None
    if architecture == "gated":
        parts |= {"b_gate": random(L), "r_mag": random(L), "b_mag": random(L)}
    return Sae(architecture, k=4 if architecture == "topk" else None, **(parts | changes))


def rows(seed: int = 1) -> torch.Tensor:
    return torch.randn(P, D, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def encode_slowly(sae: Sae, z_PD: torch.Tensor) -> torch.Tensor:
    """One latent of one row at a time, in double precision."""
    out = torch.zeros(len(z_PD), sae.d_sae, dtype=torch.float64)
    for p, z in enumerate(z_PD.double()):
        if sae.normalise == "constant_norm_rescale":
            z = z * sae.d_in**0.5 / z.norm()
        if sae.normalise == "layer_norm":
            centred = z - z.mean()
            z = centred / ((centred.square().sum() / (sae.d_in - 1)).sqrt() + 1e-5)
        if sae.apply_b_dec_to_input:
            z = z - sae.b_dec.double()
        drive = [float(z @ sae.W_enc[:, i].double()) for i in range(sae.d_sae)]
        if sae.architecture == "gated":
            for i, d in enumerate(drive):
                magnitude = d * float(sae.r_mag[i].double().exp()) + float(sae.b_mag[i])
                out[p, i] = max(0.0, magnitude) if d + float(sae.b_gate[i]) > 0 else 0.0
            continue
        drive = [d + float(sae.b_enc[i]) for i, d in enumerate(drive)]
        kept = sorted(range(sae.d_sae), key=drive.__getitem__)[-(sae.k or 0) :]
        for i, d in enumerate(drive):
            if sae.threshold is not None and not d > float(sae.threshold[i]):
                continue
            out[p, i] = max(0.0, d) if sae.k is None or i in kept else 0.0
    return out


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("normalise", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_is_the_formula(architecture, normalise, apply):
    sae = make(architecture, normalise=normalise, apply_b_dec_to_input=apply)
    h_PL = sae.encode(rows())
    torch.testing.assert_close(h_PL.double(), encode_slowly(sae, rows()), rtol=1e-4, atol=1e-4)
    assert h_PL.shape == (P, L) and 0 < (h_PL > 0).float().mean() < 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_leading_shape_and_any_split_give_the_same_latents(architecture):
    sae, z_PD = make(architecture), rows()[:32]
    h_PL = sae.encode(z_PD)
    torch.testing.assert_close(sae.encode(z_PD.view(2, 4, 4, D)).view(32, L), h_PL)
    torch.testing.assert_close(torch.cat([sae.encode(part) for part in z_PD.split(5)]), h_PL)


@pytest.mark.parametrize("normalise", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_active_is_what_encode_gives_and_nothing_else(architecture, normalise):
    sae, z_PD = make(architecture, normalise=normalise), rows()
    h_PL, found = sae.encode(z_PD), sae.active(z_PD)
    again_PL = torch.zeros_like(h_PL)
    again_PL[found.row_E, found.latent_E] = found.value_E
    assert torch.equal(again_PL, h_PL) and (found.value_E > 0).all() and len(found.value_E) == (h_PL > 0).sum()
    assert (found.row_E.diff() >= 0).all()
    torch.testing.assert_close(sae.decode_active(found, z_PD), sae.decode(h_PL, z_PD), rtol=1e-5, atol=1e-5)


def test_rows_without_a_latent_are_the_bias_alone():
    sae = make("topk", b_enc=torch.full((L,), -1e6))
    torch.testing.assert_close(sae.decode_active(sae.active(rows()), rows()), sae.b_dec.expand(P, D))


def test_topk_keeps_k_and_fewer_where_fewer_are_positive():
    sae = make("topk")
    assert int((sae.encode(rows()) > 0).sum(1).max()) == 4
    assert not make("topk", b_enc=torch.full((L,), -1e6)).encode(rows()).any()


@pytest.mark.parametrize("normalise", ["none", "constant_norm_rescale", "layer_norm"])
def test_an_edit_moves_the_reconstruction_by_direction_times_row_scale(normalise):
    sae, z_PD = make("standard", normalise=normalise), rows()
    h_PL = sae.encode(z_PD)
    edited_PL = h_PL.clone()
    edited_PL[:, 3] += 2.0
    moved_PD = sae.decode(edited_PL, z_PD) - sae.decode(h_PL, z_PD)
    expected_PD = (2 * sae.directions[3] * sae.row_scale(z_PD)).expand(P, D)
    torch.testing.assert_close(moved_PD, expected_PD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(z_PD), sae.decode(h_PL, z_PD))


def test_decode_refuses_to_forget_a_normalisation():
    sae = make("standard", normalise="layer_norm")
    with pytest.raises(ValueError, match="needs z_PD"):
        sae.decode(sae.encode(rows()))


def test_a_zero_row_stays_finite():
    for normalise in ("constant_norm_rescale", "layer_norm"):
        assert make("standard", normalise=normalise)(torch.zeros(2, D)).isfinite().all()


def test_gradients_flow_through_the_in_place_steps():
    for architecture in ARCHITECTURES:
        sae, z_PD = make(architecture), rows().requires_grad_()
        (slope,) = torch.autograd.grad(sae.encode(z_PD)[:, 5].sum(), z_PD)
        active_P1 = (sae.encode(rows())[:, 5:6] > 0).float()
        column_D = sae.W_enc[:, 5] * (sae.r_mag[5].exp() if architecture == "gated" else 1)
        torch.testing.assert_close(slope, active_P1 * column_D)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("apply", [True, False])
def test_on_raw_is_centring_and_scaling_first(architecture, apply):
    sae, z_PD, mean_D = make(architecture, apply_b_dec_to_input=apply), rows(), torch.arange(D) / 3.0
    raw = sae.on_raw(mean_D, 0.7)
    x_PD = (z_PD - mean_D) * 0.7
    torch.testing.assert_close(raw.encode(z_PD), sae.encode(x_PD), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw(z_PD), sae(x_PD) / 0.7 + mean_D, rtol=1e-4, atol=1e-4)


def test_rescaling_by_decoder_norm_is_folded_into_unit_rows():
    plain = make("topk")
    sae, norm_L = make("topk", rescale_acts_by_decoder_norm=True), plain.W_dec.norm(dim=1)
    pre_PL = ((rows() - plain.b_dec) @ plain.W_enc + plain.b_enc) * norm_L
    top = pre_PL.topk(4)
    expected_PL = torch.zeros_like(pre_PL).scatter_(1, top.indices, top.values.relu())
    torch.testing.assert_close(sae.encode(rows()), expected_PL)
    torch.testing.assert_close(sae(rows()), (expected_PL / norm_L) @ plain.W_dec + plain.b_dec)
    torch.testing.assert_close(sae.directions.norm(dim=1), torch.ones(L))


def test_bfloat16_and_half_inputs():
    sae = make("topk")
    assert sae.encode(rows().half()).dtype == torch.float32
    low = make("topk").to(torch.bfloat16)
    assert low(rows()).dtype == torch.bfloat16


def test_replace_shares_tensors_and_leaves_the_first_alone():
    sae = make("topk")
    other = sae.replace(tap="vision.3")
    assert other.W_enc.data_ptr() == sae.W_enc.data_ptr() and (sae.tap, other.tap) == ("", "vision.3")


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"b_enc is of shape \(3,\)"):
        make("standard", b_enc=torch.zeros(3))
    with pytest.raises(ValueError, match="threshold is absent"):
        make("jumprelu", threshold=None)
    with pytest.raises(ValueError, match="k is 999"):
        Sae.untrained(0, D, L, k=999)
    with pytest.raises(ValueError, match="known are standard"):
        Sae("sparse", W_enc=torch.zeros(D, L), W_dec=torch.zeros(L, D))


def test_untrained_is_a_function_of_its_seed():
    trained = make("topk").replace(tap="vision.3")
    a, b, c = (Sae.untrained(seed, like=trained) for seed in (1, 1, 2))
    assert torch.equal(a.W_dec, b.W_dec) and not torch.equal(a.W_dec, c.W_dec)
    torch.testing.assert_close(a.W_enc.norm(dim=0), trained.W_enc.norm(dim=0))
    assert (a.architecture, a.k, a.tap, a.d_sae) == ("topk", 4, "vision.3", L)
    assert torch.equal(a.b_dec, trained.b_dec)
    assert Sae.untrained(1, D, L).architecture == "standard"


def test_an_untrained_latent_adds_as_much_as_the_trained_one():
    """Formats that were trained on scaled states have directions as short as the states were made long."""
    plain = make("topk")
    trained = plain.on_raw(scale=40.0)
    control, longer = (Sae.untrained(1, like=one) for one in (trained, plain))
    torch.testing.assert_close(control.directions.norm(dim=1), trained.directions.norm(dim=1))
    torch.testing.assert_close(control.directions * 40, longer.directions)
    torch.testing.assert_close(control.W_enc, longer.W_enc * 40)  # what fires has to do with the encoder alone


def test_directions_of_unit_length_but_for_rounding_stay_as_they_were():
    trained = make("topk")
    unit = trained.replace(W_dec=(trained.W_dec / trained.W_dec.norm(dim=1, keepdim=True)).half().float())
    assert 0 < (unit.W_dec.norm(dim=1) - 1).abs().max() < 1e-3
    generator = torch.Generator().manual_seed(5)
    plain_LD = torch.randn(L, D, generator=generator)
    plain_LD /= plain_LD.norm(dim=1, keepdim=True)
    assert torch.equal(Sae.untrained(5, like=unit).W_dec, plain_LD)


def test_quality_in_chunks_is_quality_at_once():
    sae, z_ND = make("topk"), rows()
    h_NL = sae.encode(z_ND)
    expected = (sae(z_ND) - z_ND).square().sum() / (z_ND - z_ND.mean(0)).square().sum()
    for chunk in (None, 1, 7):
        found = quality(sae, z_ND, chunk=chunk)
        assert found.unexplained_variance == pytest.approx(float(expected), rel=1e-5)
        assert found.mean_l0 == pytest.approx(float((h_NL > 0).sum(1).float().mean()))
        assert found.dead_share == pytest.approx(float((~(h_NL > 0).any(0)).float().mean()))


def test_quality_knows_the_perfect_and_the_empty():
    eye = torch.eye(D)
    perfect = Sae("standard", W_enc=torch.cat([eye, -eye], 1), W_dec=torch.cat([eye, -eye]))
    assert quality(perfect, rows()).unexplained_variance == pytest.approx(0, abs=1e-10)
    mean = Sae("standard", W_enc=torch.zeros(D, L), W_dec=torch.zeros(L, D), b_dec=rows().mean(0))
    assert quality(mean, rows()) == pytest.approx((1.0, 0.0, 1.0), rel=1e-5)
