"""SAE: one sparse autoencoder. Activations in, latents out, and back. No files, no training.

Row vectors throughout: `h = act((x - b_dec) @ W_enc + b_enc)` and `x' = h @ W_dec + b_dec`. Six
architectures share these four tensors and differ only in `act`:

    standard    relu                                   topk         the k largest of a row, then relu
    jumprelu    relu where the value exceeds a learned threshold, else 0
    batchtopk, matryoshka    trained with a budget per batch, read with the threshold it left behind
                (so a patch's latents never depend on which other patches came with it)
    gated       relu(x W e^r_mag + b_mag) where x W + b_gate > 0

The tensors are buffers, not parameters: a loaded SAE is a frozen value, and `replace` makes another.
Axes: P patches or tokens (any leading shape), D model width `d_in`, L latents `d_sae`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag, linear

ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
THRESHOLDED = ("batchtopk", "jumprelu", "matryoshka")
NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
EPSILON = 1e-5  # of layer_norm; the value SAELens and ViT-Prisma train with
UNIT = 0.01  # a direction is of unit length if it differs by less; half precision alone makes 2e-4
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "r_mag", "b_mag")


class Normalised(NamedTuple):
    """One row's own normalisation: `x = (z - mean) / scale`, undone as `x * unscale + mean`."""

    x_PD: torch.Tensor
    mean_P1: torch.Tensor | float
    unscale_P1: torch.Tensor | float


class Active(NamedTuple):
    """The active latents of some rows, row after row."""

    row_E: torch.Tensor
    latent_E: torch.Tensor
    value_E: torch.Tensor


class SaeQuality(NamedTuple):
    unexplained_variance: float
    """squared reconstruction error over squared distance from the mean: 0 is perfect, 1 is the mean"""
    mean_l0: float
    """latents active per patch"""
    dead_share: float
    """share of the latents that no patch activates"""


class Sae(torch.nn.Module):
    """A sparse autoencoder over the activations at one tap of a model."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor | None
    W_dec: torch.Tensor
    b_dec: torch.Tensor

    def __init__(
        self,
        architecture: str,
        *,
        W_enc: torch.Tensor,
        W_dec: torch.Tensor,
        b_enc: torch.Tensor | None = None,
        b_dec: torch.Tensor | None = None,
        threshold: torch.Tensor | float | None = None,
        b_gate: torch.Tensor | None = None,
        r_mag: torch.Tensor | None = None,
        b_mag: torch.Tensor | None = None,
        k: int | None = None,
        normalise: str = "none",
        apply_b_dec_to_input: bool = True,
        rescale_acts_by_decoder_norm: bool = False,
        tap: str = "",
        name: str = "",
        provenance: dict | None = None,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {architecture!r}; known are {', '.join(ARCHITECTURES)}")
        if normalise not in NORMALISATIONS:
            raise ValueError(f"normalise is {normalise!r}; known are {', '.join(NORMALISATIONS)}")
        D, L = W_enc.shape
        if b_dec is None:
            b_dec = W_dec.new_zeros(D)
        if architecture == "gated":
            b_enc = None
        elif b_enc is None:
            b_enc = W_enc.new_zeros(L)
        if architecture in THRESHOLDED and threshold is not None:
            threshold = torch.as_tensor(threshold).to(W_enc).expand(L).clone()
        if rescale_acts_by_decoder_norm:
            # Same latents, same reconstruction, unit rows: folded once, so that no reader must ask.
            W_enc, b_enc, W_dec = _fold_decoder_norm(W_enc, b_enc, W_dec)
        self.architecture, self.k, self.normalise = architecture, k, normalise
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.tap, self.name, self.provenance = tap, name, dict(provenance or {})
        given = dict(zip(TENSORS, (W_enc, b_enc, W_dec, b_dec, threshold, b_gate, r_mag, b_mag), strict=True))
        wanted = _wanted(architecture, D, L)
        for key in TENSORS:
            tensor = given[key] if key in wanted else None
            if key in wanted and (tensor is None or tuple(tensor.shape) != wanted[key]):
                found = "absent" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise ValueError(f"{key} is {found}; a {architecture} SAE of {D} x {L} needs {wanted[key]}")
            self.register_buffer(key, None if tensor is None else tensor.detach())
        if architecture == "topk" and not (isinstance(k, int) and 1 <= k <= L):
            raise ValueError(f"k is {k!r}; a topk SAE needs a whole number from 1 to {L}")

    # -- what it is ---------------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def directions(self) -> torch.Tensor:
        """(L, D): what one unit of each latent adds to the activation."""
        return self.W_dec

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    def extra_repr(self) -> str:
        k = f", k={self.k}" if self.k else ""
        return f"{self.architecture}, {self.d_in} -> {self.d_sae}{k}, tap={self.tap!r}, name={self.name!r}"

    def replace(self, **changes) -> Sae:
        """Another SAE with some arguments changed; unchanged tensors are shared, not copied."""
        kept = {key: getattr(self, key) for key in (*TENSORS, "k", "normalise", "apply_b_dec_to_input")}
        kept |= {"tap": self.tap, "name": self.name, "provenance": self.provenance}
        return Sae(changes.pop("architecture", self.architecture), **(kept | changes))

    # -- what it does -------------------------------------------------------------------------------

    def encode(self, z_PD: torch.Tensor) -> torch.Tensor:
        """Latents of raw activations, dense. Holds one (P, L) tensor, and for most kinds a mask of it."""
        x_PD = self._read(z_PD)
        if self.architecture == "gated":
            pre_PL = linear(x_PD, self.W_enc.T)
            open_PL = pre_PL > -self.b_gate
            return pre_PL.mul_(self.r_mag.exp()).add_(self.b_mag).mul_(open_PL).relu_()
        pre_PL = linear(x_PD, self.W_enc.T, self.b_enc)
        if self.architecture == "standard":
            return pre_PL.relu_()
        if self.architecture == "topk":
            top = pre_PL.topk(self.k, dim=-1, sorted=False)
            return pre_PL.zero_().scatter_(-1, top.indices, top.values.relu())
        above_PL = pre_PL > self.threshold
        return pre_PL.mul_(above_PL).relu_()  # relu last: its backward pass needs its result unchanged

    def active(self, z_PD: torch.Tensor) -> Active:
        """What `encode` gives, and nothing of the rest: of a topk code no dense copy is made."""
        if self.architecture == "topk":
            top = linear(self._read(z_PD), self.W_enc.T, self.b_enc).topk(self.k, dim=-1, sorted=False)
            on_PK = top.values > 0
            row_E = torch.arange(len(z_PD), device=on_PK.device).repeat_interleave(on_PK.sum(1))
            return Active(row_E, top.indices[on_PK], top.values[on_PK])
        h_PL = self.encode(z_PD)
        row_E, latent_E = (h_PL > 0).nonzero(as_tuple=True)
        return Active(row_E, latent_E, h_PL[row_E, latent_E])

    def decode(self, h_PL: torch.Tensor, z_PD: torch.Tensor | None = None) -> torch.Tensor:
        """Activations of latents. An SAE that normalises its input needs the rows `z_PD` it came from."""
        x_PD = linear(h_PL.to(self.dtype), self.W_dec.T, self.b_dec)
        if self.normalise == "none":
            return x_PD
        if z_PD is None:
            raise ValueError(f"this SAE normalises each row ({self.normalise}); decode needs z_PD to undo it")
        _, mean_P1, unscale_P1 = self._normalise(z_PD)
        return x_PD * unscale_P1 + mean_P1

    def decode_active(self, found: Active, z_PD: torch.Tensor) -> torch.Tensor:
        """What `decode` makes of latents that `active` found in the rows `z_PD`, at the cost of those alone."""
        count_P = torch.bincount(found.row_E, minlength=len(z_PD))
        first_P = count_P.cumsum(0) - count_P
        x_PD = embedding_bag(
            found.latent_E, self.W_dec, first_P, mode="sum", per_sample_weights=found.value_E.to(self.dtype)
        )
        x_PD = x_PD + self.b_dec
        if self.normalise == "none":
            return x_PD
        _, mean_P1, unscale_P1 = self._normalise(z_PD)
        return x_PD * unscale_P1 + mean_P1

    def forward(self, z_PD: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(z_PD), z_PD)

    def row_scale(self, z_PD: torch.Tensor) -> torch.Tensor | float:
        """What one unit of a latent is worth in each row of `z_PD`: an edit adds `(h' - h) @ directions`
        times this. 1.0 unless the SAE normalises its input."""
        return self._normalise(z_PD).unscale_P1

    def _read(self, z_PD: torch.Tensor) -> torch.Tensor:
        """What the encoder's weights are given."""
        x_PD = self._normalise(z_PD).x_PD
        return x_PD - self.b_dec if self.apply_b_dec_to_input else x_PD

    def _normalise(self, z_PD: torch.Tensor) -> Normalised:
        z_PD = z_PD.to(self.dtype)
        if self.normalise == "constant_norm_rescale":
            # a zero row has no direction to rescale: leave it zero rather than make it NaN
            unscale_P1 = z_PD.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return Normalised(z_PD / unscale_P1.clamp_min(torch.finfo(self.dtype).tiny), 0.0, unscale_P1)
        if self.normalise == "layer_norm":
            mean_P1 = z_PD.mean(dim=-1, keepdim=True)
            std_P1 = z_PD.std(dim=-1, keepdim=True)  # unbiased, as SAELens and ViT-Prisma have it
            return Normalised((z_PD - mean_P1) / (std_P1 + EPSILON), mean_P1, std_P1)
        return Normalised(z_PD, 0.0, 1.0)

    # -- others derived from it ---------------------------------------------------------------------

    def on_raw(self, mean_D: torch.Tensor | float = 0.0, scale: float = 1.0) -> Sae:
        """The SAE that does to raw `z` what this one does to `(z - mean) * scale`: same latents, and
        a reconstruction in raw units. The statistics of training vanish into the weights."""
        if self.normalise != "none":
            raise ValueError(f"an SAE that normalises each row ({self.normalise}) has no mean to fold")
        mean_D = torch.as_tensor(mean_D).to(self.b_dec).expand(self.d_in)
        folded = {"W_enc": self.W_enc * scale, "W_dec": self.W_dec / scale}
        folded["b_dec"] = self.b_dec / scale + mean_D
        if not self.apply_b_dec_to_input:
            shift_L = (mean_D * scale) @ self.W_enc
            if self.architecture == "gated":
                folded["b_gate"] = self.b_gate - shift_L
                folded["b_mag"] = self.b_mag - shift_L * self.r_mag.exp()
            else:
                folded["b_enc"] = self.b_enc - shift_L
        return self.replace(**folded)

    @classmethod
    def untrained(
        cls,
        seed: int,
        d_in: int | None = None,
        d_sae: int | None = None,
        *,
        k: int | None = None,
        like: Sae | None = None,
    ) -> Sae:
        """The control: random unit directions with a tied encoder, the same for a seed on every machine.

        With `like`, all that decides how many latents fire (k, thresholds, biases, the length of each
        encoder column) and how much one unit of a latent adds (the length of each direction) is copied
        from it, so that only the directions are untrained.
        """
        D, L = (like.d_in, like.d_sae) if like is not None else (d_in, d_sae)
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(L, D, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        source = {"untrained": {"seed": seed}}
        if like is None:
            kind, W_enc = "standard" if k is None else "topk", W_dec.T.contiguous()
            return cls(kind, W_enc=W_enc, W_dec=W_dec, k=k, name="untrained", provenance=source)
        lengths_L = like.W_enc.float().norm(dim=0).cpu()
        W_enc = (W_dec.T * lengths_L).to(like.W_enc)
        units_L = like.W_dec.float().norm(dim=1).cpu()
        # What is of unit length but for its rounding is made of unit length.
        W_dec *= torch.where((units_L - 1).abs() > UNIT, units_L, 1.0)[:, None]
        return like.replace(
            W_enc=W_enc, W_dec=W_dec.to(like.W_dec), name=f"{like.name} untrained".strip(), provenance=source
        )


def mean_row(acts_ND: torch.Tensor) -> torch.Tensor:
    """The mean of half-precision rows, added up in double precision without a double copy of them."""
    total_D = sum(chunk_PD.double().sum(0) for chunk_PD in acts_ND.split(65536))
    return (total_D / len(acts_ND)).float()


def quality(sae: Sae, acts_ND: torch.Tensor, *, chunk: int | None = None) -> SaeQuality:
    """How well an SAE explains raw activations, in one pass after the mean, chunk by chunk."""
    N = len(acts_ND)
    rows = chunk or max(1, min(8192, 2**22 // sae.d_sae))  # 16 MB of latents at a time stays near the caches
    mean_D = mean_row(acts_ND).double()
    error = total = active = 0.0
    alive_L = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
    with torch.no_grad():
        for z_PD in acts_ND.split(rows):
            centred_PD = z_PD.double() - mean_D
            z_PD = z_PD.to(sae.device)
            h_PL = sae.encode(z_PD)
            fired_PL = h_PL > 0
            active += float(fired_PL.sum())
            alive_L |= fired_PL.any(0)
            error += float((sae.decode(h_PL, z_PD).float() - z_PD.float()).square().sum(dtype=torch.float64))
            total += float(centred_PD.square().sum())
    dead = 1.0 - float(alive_L.float().mean())
    return SaeQuality(error / total if total else float("nan"), active / N, dead)


def _wanted(architecture: str, D: int, L: int) -> dict[str, tuple[int, ...]]:
    """The tensors an architecture has, with their shapes."""
    shapes = {"W_enc": (D, L), "W_dec": (L, D), "b_dec": (D,)}
    if architecture == "gated":
        return shapes | {"b_gate": (L,), "r_mag": (L,), "b_mag": (L,)}
    if architecture in THRESHOLDED:
        return shapes | {"b_enc": (L,), "threshold": (L,)}
    return shapes | {"b_enc": (L,)}


def _fold_decoder_norm(
    W_enc: torch.Tensor, b_enc: torch.Tensor | None, W_dec: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    norm_L = W_dec.norm(dim=1)
    unit = W_dec / norm_L.clamp_min(torch.finfo(W_dec.dtype).tiny)[:, None]
    return W_enc * norm_L, None if b_enc is None else b_enc * norm_L, unit
