"""Learning: the gradients of one batch, for every architecture that is trained here, and what becomes of dead latents.

    standard     relu, and an L1 penalty on the latents
    topk         the k largest of a row
    batchtopk    the k largest per row on average: as many of a whole batch as k times its rows
    matryoshka   the same, and every prefix of the latents (`prefixes`) has to explain the data alone

`topk` takes prefixes as well. The two that select over a batch learn the threshold that they are read with: the
smallest latent that a batch let through, averaged over steps.

Why it looks the way it does (4,096 rows x 112 -> 3,584 latents, one core):

- A TopK step needs the full encoder product once (32 ms in float32, 9 ms in bfloat16) and the selection
  (28 ms). All the rest touches 16 latents of 3,584, and is done on those alone: decoding is an
  `embedding_bag` (0.5 ms instead of 36 ms), a weight gradient one sparse product (2 ms instead of 36 ms).
- Latents start as directions of data, not of noise, and those that stop firing are taught the error of
  the others (AuxK, Gao et al. 2406.04093). Where a few directions carry most of the data that revives
  hardly any: their bias is lifted as well, a little in each step, until they win a place among the K and
  learn.
- ReLU has no AuxK: its dead latents are set anew to rows that are explained badly (Bricken et al. 2023).

Axes: B rows of a step, D model width, L latents, K latents active in a row, E active entries of a batch, G prefixes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag, linear

AUX_WEIGHT = 1 / 4
AUX_ROWS = 1024  # AuxK sees this many rows of a step: its gradient needs no more, and its cost is theirs
DEAD_AFTER = 50_000  # rows without firing; far below the usual 10 million, as whole runs here see fewer
BLOCK = 256  # rows of a dense (B, L) on a CPU at a time: they stay in its cache; bfloat16 counts to 256
FIRST_L0 = 64  # latents that a ReLU row starts with
SOME_ROWS, SPARE = 16, 1.25  # every so many rows tell what a batch lets through; so many times too much is looked at
REMEMBERED = 0.99  # of the threshold, from step to step


class Weights(NamedTuple):
    """Latents by row, so that the few a row uses are gathered from contiguous memory."""

    encoder_LD: torch.Tensor
    b_enc_L: torch.Tensor
    decoder_LD: torch.Tensor
    b_dec_D: torch.Tensor


class Active(NamedTuple):
    """What is on in a batch, row by row."""

    values_E: torch.Tensor
    latents_E: torch.Tensor
    rows_E: torch.Tensor


class Learned(NamedTuple):
    loss: float
    error_BD: torch.Tensor
    l0: float
    fired_L: torch.Tensor


class Learner:
    """Gradients of one batch, and which latents have not fired for long."""

    def __init__(
        self,
        weights: Weights,
        fast: torch.dtype,
        *,
        k: int,
        l1: float = 0.0,
        over_batch: bool = False,
        prefixes: tuple[int, ...] = (),
        auxiliary: bool = True,
    ) -> None:
        """`k` 0: ReLU and L1. `prefixes`: sizes, smallest first, without the whole."""
        self.weights, self.fast, self.k, self.l1 = weights, fast, k, l1
        self.over_batch, self.auxiliary = over_batch, auxiliary
        device = weights.decoder_LD.device
        self.ends_G = torch.tensor([*prefixes, len(weights.decoder_LD)], device=device)
        self.silent_L = torch.zeros(len(weights.decoder_LD), device=device)
        self.threshold = torch.full((), float("nan"), device=device)
        """of a selection over the batch; NaN before the first"""

    @property
    def dead_L(self) -> torch.Tensor:
        return self.silent_L > DEAD_AFTER

    def learn(self, x_BD: torch.Tensor, warmth: float = 1.0) -> Learned:
        """Fill `.grad` of every weight. `warmth`: the share of the L1 penalty that counts yet."""
        return self._sparse(x_BD) if self.k else self._relu(x_BD, warmth)

    def count(self, fired_L: torch.Tensor, rows: int) -> None:
        self.silent_L = torch.where(fired_L, 0.0, self.silent_L + rows)

    def _sparse(self, x_BD: torch.Tensor) -> Learned:
        encoder_LD, b_enc_L, _, _ = self.weights
        with torch.no_grad():
            values_E, latents_E, rows_E = self._selected(x_BD)
            if self.over_batch:
                self._remember(values_E)
        values_E.requires_grad_()
        error_GBD = x_BD - self._reconstructed(Active(values_E, latents_E, rows_E), len(x_BD))
        error_BD = error_GBD[-1]
        loss = error_GBD.square().sum(2).mean()
        dead = self.dead_L.nonzero()[:, 0] if self.auxiliary else ()
        total = loss
        if len(dead):
            total = loss + AUX_WEIGHT * self._aux(x_BD[:AUX_ROWS], error_BD[:AUX_ROWS].detach(), dead)
        total.backward()
        # The encoder's own gradient: values were taken out of the graph, so that no dense (B, L)
        # gradient is ever made. A value of exactly 0 was cut by relu and learns nothing.
        on_E = values_E.detach() > 0
        grad_E = values_E.grad * on_E
        grad_LD, grad_L = scattered(latents_E, rows_E, grad_E, x_BD, len(encoder_LD))
        encoder_LD.grad = grad_LD if encoder_LD.grad is None else encoder_LD.grad + grad_LD
        b_enc_L.grad = grad_L if b_enc_L.grad is None else b_enc_L.grad + grad_L
        fired_L = torch.zeros_like(self.silent_L, dtype=torch.bool)
        fired_L[latents_E[on_E]] = True
        return Learned(float(loss.detach()), error_BD.detach(), float(on_E.sum()) / len(x_BD), fired_L)

    def _selected(self, x_BD: torch.Tensor) -> Active:
        """Row by row; values that relu cut stay in, as zeros."""
        encoder_LD, b_enc_L, _, _ = self.weights
        pre_BL = linear(x_BD.to(self.fast), encoder_LD.to(self.fast), b_enc_L.to(self.fast))
        B, L = pre_BL.shape
        if not self.over_batch:
            top = pre_BL.topk(self.k, dim=-1, sorted=False)
            rows_E = torch.arange(B, device=pre_BL.device).repeat_interleave(self.k)
            return Active(top.values.flatten().float().relu_(), top.indices.flatten(), rows_E)
        # What could be among the largest is found by a bound that some rows suggest; a bound that was too high is seen.
        budget, flat_N, some_N = B * self.k, pre_BL.flatten(), pre_BL[::SOME_ROWS].flatten()
        enough = min(len(some_N), int(SPARE * budget * len(some_N) / len(flat_N)) + 1)
        places_M = (flat_N >= some_N.topk(enough, sorted=False).values.min()).nonzero()[:, 0]
        if len(places_M) < budget:
            places_M = torch.arange(len(flat_N), device=flat_N.device)
        chosen_E = places_M[flat_N[places_M].topk(budget, sorted=False).indices].sort().values
        return Active(flat_N[chosen_E].float().relu_(), chosen_E % L, chosen_E // L)

    def _remember(self, values_E: torch.Tensor) -> None:
        on_E = values_E[values_E > 0]
        least = on_E.min() if len(on_E) else values_E.new_zeros(())
        known = self.threshold.isfinite()
        self.threshold = torch.where(known, REMEMBERED * self.threshold + (1 - REMEMBERED) * least, least)

    def _reconstructed(self, active: Active, B: int) -> torch.Tensor:
        """(G, B, D): what every prefix makes of the rows; the last is the whole."""
        _, _, decoder_LD, b_dec_D = self.weights
        values_E, latents_E, rows_E = active
        G = len(self.ends_G)
        bags_E = rows_E
        if G > 1:  # a bag for every ring of latents in every row; prefixes are sums of rings
            bags_E = torch.bucketize(latents_E, self.ends_G, right=True) * B + rows_E
            bags_E, order_E = bags_E.sort(stable=True)
            values_E, latents_E = values_E[order_E], latents_E[order_E]
        starts = torch.searchsorted(bags_E, torch.arange(G * B, device=bags_E.device))
        rings = embedding_bag(latents_E, decoder_LD, starts, per_sample_weights=values_E, mode="sum")
        return rings.view(G, B, -1).cumsum(0) + b_dec_D

    def _aux(self, x_BD: torch.Tensor, error_BD: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
        """How badly the dead latents alone, more of them than K, explain what the living leave over."""
        encoder_LD, b_enc_L, decoder_LD, _ = self.weights
        pre_BL = linear(x_BD, encoder_LD[dead], b_enc_L[dead])
        top = pre_BL.topk(min(len(dead), max(1, x_BD.shape[1] // 2)), dim=-1, sorted=False)
        recon_BD = embedding_bag(dead[top.indices], decoder_LD, per_sample_weights=top.values.relu(), mode="sum")
        return (error_BD - recon_BD).square().sum() / error_BD.square().sum().clamp_min(1e-12)

    @torch.no_grad()
    def _relu(self, x_BD: torch.Tensor, warmth: float) -> Learned:
        """A block of rows at a time: on a CPU the five products are quick, and what costs is to send a dense (B, L)
        through memory between them. The gradients are written out, so that a block's latents never leave the cache,
        and a last column of ones makes every sum over rows a part of a product."""
        encoder_LD, b_enc_L, decoder_LD, b_dec_D = self.weights
        B, D = x_BD.shape
        encode_DL, decode_LD, b_fast_L = encoder_LD.T.to(self.fast), decoder_LD.to(self.fast), b_enc_L.to(self.fast)
        cost_L = torch.full_like(b_fast_L, warmth * self.l1 / B)
        encoder_LE, decoder_LE = (x_BD.new_zeros(len(b_enc_L), D + 1) for _ in range(2))  # the last one: of the ones
        count_L, errors = torch.zeros_like(self.silent_L), []
        for x_RD in x_BD.split(BLOCK if x_BD.device.type == "cpu" else B):
            ones_R1 = x_RD.new_ones(len(x_RD), 1)
            x_RE = torch.cat([x_RD, ones_R1], 1).to(self.fast)
            h_RL = torch.addmm(b_fast_L, x_RE[:, :D], encode_DL).relu_()
            error_RD = x_RD - (h_RL @ decode_LD).float() - b_dec_D
            pull_RE = torch.cat([error_RD * (-2 / B), ones_R1], 1).to(self.fast)
            grad_RL = torch.addmm(cost_L, pull_RE[:, :D], decode_LD.T)
            grad_RL = torch.ops.aten.threshold_backward(grad_RL, h_RL, 0)
            encoder_LE += grad_RL.T @ x_RE
            decoder_LE += h_RL.T @ pull_RE
            count_L += self._counted(h_RL)
            errors.append(error_RD)
        error_BD = torch.cat(errors)
        gradients = encoder_LE[:, :D], encoder_LE[:, D], decoder_LE[:, :D], error_BD.sum(0) * (-2 / B)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.contiguous() if weight.grad is None else weight.grad + gradient
        loss = error_BD.square().sum() / B + warmth * self.l1 / B * decoder_LE[:, D].sum()
        return Learned(float(loss), error_BD, float(count_L.sum()) / B, count_L > 0)

    def _counted(self, h_RL: torch.Tensor) -> torch.Tensor:
        if len(h_RL) > BLOCK:  # bfloat16 counts no further
            return (h_RL > 0).sum(0)
        on_RL = torch.ops.aten.threshold_backward(h_RL.new_ones(1, 1).expand_as(h_RL), h_RL, 0)
        return (h_RL.new_ones(1, len(h_RL)) @ on_RL)[0]

    @torch.no_grad()
    def resample(self, x_BD: torch.Tensor, optimiser: torch.optim.Adam, generator: torch.Generator) -> None:
        """Point each dead latent at a row that is explained badly, and let its optimiser forget."""
        length = self.weights.encoder_LD[~self.dead_L].norm(dim=1).mean() if bool((~self.dead_L).any()) else 1.0
        self._born_again(x_BD - self.reconstruct(x_BD), generator, 0.2 * length, 0.0)
        for weight in self.weights[:3]:
            for moment in {"exp_avg", "exp_avg_sq"} & optimiser.state[weight].keys():
                optimiser.state[weight][moment][self.dead_L] = 0.0
        self.silent_L[self.dead_L] = 0.0

    @torch.no_grad()
    def revive(self, x_BD: torch.Tensor, generator: torch.Generator) -> None:
        """The same, loudly: many win a place among the K at once and are corrected, where a latent that has to be
        lifted up to it from silence ends as one that is always on."""
        error_BD = x_BD - self.reconstruct(x_BD)
        self._born_again(error_BD, generator, 1.0, -0.5 * float(error_BD.norm(dim=1).mean()))

    def _born_again(self, error_BD: torch.Tensor, generator: torch.Generator, length: float, bias: float) -> None:
        """Dead latents look for, and write, what is left over of rows; of one that is explained badly the likelier.
        Each has a row of its own while there are enough: two of one row would learn the same and stay one latent."""
        encoder_LD, b_enc_L, decoder_LD, _ = self.weights
        dead = self.dead_L.nonzero()[:, 0]
        loss_B = error_BD.square().sum(1).square().cpu()
        if not len(dead) or not bool(loss_B.sum() > 0):
            return
        scarce = len(dead) > int((loss_B > 0).sum())
        rows = torch.multinomial(loss_B, len(dead), replacement=scarce, generator=generator).to(error_BD.device)
        unit_KD = error_BD[rows] / error_BD[rows].norm(dim=1, keepdim=True).clamp_min(1e-12)
        decoder_LD[dead], encoder_LD[dead], b_enc_L[dead] = unit_KD, length * unit_KD, bias

    @torch.no_grad()
    def reconstruct(self, x_BD: torch.Tensor) -> torch.Tensor:
        if self.k:
            return self._reconstructed(self._selected(x_BD), len(x_BD))[-1]
        encoder_LD, b_enc_L, decoder_LD, b_dec_D = self.weights
        return linear(x_BD, encoder_LD, b_enc_L).relu_() @ decoder_LD + b_dec_D


def first_weights(x_SD: torch.Tensor, L: int, k: int, generator: torch.Generator) -> Weights:
    """Directions of random data rows with a little noise, so that twins part. The encoder is tied, and as
    long as gives the first reconstructions the right length: many latents that agree would overshoot."""
    rows_LD = x_SD[torch.randint(len(x_SD), (L,), generator=generator)]
    rows_LD = rows_LD / rows_LD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    noise_LD = torch.randn(rows_LD.shape, generator=generator) / rows_LD.shape[1] ** 0.5
    decoder_LD = rows_LD + 0.5 * noise_LD
    decoder_LD /= decoder_LD.norm(dim=1, keepdim=True)
    x_BD = x_SD[:2048]
    pre_BL, b_enc_L = x_BD @ decoder_LD.T, torch.zeros(L)
    if k:
        top = pre_BL.topk(k, dim=-1)
        h_BL = torch.zeros_like(pre_BL).scatter_(-1, top.indices, top.values.relu())
    else:
        # With no bias half of all latents fire, and pull together so strongly that training never settles.
        rank = max(1, len(x_BD) - round(len(x_BD) * min(0.5, FIRST_L0 / L)))
        b_enc_L = -torch.cat([part.kthvalue(rank, dim=0).values for part in pre_BL.split(1024, dim=1)])
        h_BL = (pre_BL + b_enc_L).relu_()
    recon_BD = h_BL @ decoder_LD
    length = (x_BD * recon_BD).sum() / recon_BD.square().sum().clamp_min(1e-12)
    return Weights(decoder_LD * length, b_enc_L * length, decoder_LD, torch.zeros(x_SD.shape[1]))


def scattered(
    latents_E: torch.Tensor, rows_E: torch.Tensor, grad_E: torch.Tensor, x_BD: torch.Tensor, L: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over rows of gradient times input, for each latent: one sparse (L, B) product."""
    where = torch.stack([latents_E, rows_E])
    grad_LB = torch.sparse_coo_tensor(where, grad_E, (L, len(x_BD)), check_invariants=False)
    grad_L = torch.zeros(L, device=x_BD.device).index_add_(0, latents_E, grad_E)
    return torch.sparse.mm(grad_LB, x_BD), grad_L


def project(decoder_LD: torch.Tensor) -> None:
    """Take from the gradient what would only change a row's length, which is fixed at 1."""
    with torch.no_grad():
        along_L1 = (decoder_LD.grad * decoder_LD).sum(1, keepdim=True)
        decoder_LD.grad -= along_L1 * decoder_LD


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies it natively; elsewhere it is emulated, and slower."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if native else torch.float32
