"""The choice between the two forms of the norms, by trying both on the given weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aioembed.export.clip.balance import balance
from aioembed.export.clip.blocks import Block, Dynamic, NormForm
from aioembed.export.clip.checkpoint import Checkpoint
from aioembed.export.clip.rounding import imitated_int8
from aioembed.export.clip.towers import Tower, build_tower
from aioembed.models import Precision

__all__ = ["NormChoice", "choose_norm", "preferred_form"]

_EXACT_ENOUGH = 1e-5
_INT8_SLACK = 1e-4


@dataclass(frozen=True)
class NormChoice:
    """Which form was taken, and why.

    Attributes:
        form: `ln` is the runtime's own layer norm, outside the delegate. `bn` has the residual
            stream centred by the weights, and norms of nothing but products inside the delegate.
        reason: For people.
    """

    form: NormForm
    reason: str


def choose_norm(
    checkpoint: Checkpoint,
    tower: Tower,
    precision: Precision,
    samples: Sequence[tuple[Tensor, ...]],
    wanted: Tensor,
) -> NormChoice:
    """Try both forms on samples, and take `bn`, the faster, unless it costs accuracy.

    For int8 the quantisation of weights and activations is imitated.

    Args:
        checkpoint: The given weights.
        tower: Which tower of it.
        precision: Of the program.
        samples: Inputs.
        wanted: Their vectors by transformers, `(samples, embedding_dim)`.
    """
    dynamic: Dynamic = "tokens" if tower == "text" else None

    def tried(form: NormForm) -> tuple[float, float]:
        """Return the loss and the largest channel; the module is gone before the next."""
        module = build_tower(checkpoint, tower, norm=form, dynamic=dynamic)
        largest = _largest_channel(module, samples) if form == "ln" else 0.0
        if precision == "fp32":
            return _loss(module, samples, wanted), largest
        balance(module, samples)
        linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
        with imitated_int8(linears):
            return _loss(module, samples, wanted), largest

    (bn_loss, _), (ln_loss, outliers) = tried("bn"), tried("ln")
    form = preferred_form(bn_loss, ln_loss, precision)
    verdict = "bn is the faster and no worse" if form == "bn" else "bn loses accuracy here"
    reason = (
        f"{verdict}: 1 - cosine on {len(samples)} samples is {bn_loss:.1e} with bn and "
        f"{ln_loss:.1e} with ln; the largest residual channel is {outliers:.0f} times the "
        "median one"
    )
    return NormChoice(form, reason)


def preferred_form(bn_loss: float, ln_loss: float, precision: Precision) -> NormForm:
    """Return `bn` unless it loses more than rounding explains.

    Args:
        bn_loss: 1 - the lowest cosine of the form `bn`; infinite where it gave no numbers.
        ln_loss: Of the form `ln`.
        precision: Of the program.
    """
    slack = _EXACT_ENOUGH if precision == "fp32" else _INT8_SLACK
    return "bn" if bn_loss <= ln_loss + slack else "ln"


def _loss(module: nn.Module, samples: Sequence[tuple[Tensor, ...]], wanted: Tensor) -> float:
    """Return 1 - the lowest cosine."""
    with torch.no_grad():
        vectors = torch.cat([module(*sample) for sample in samples])
    loss = 1 - float((vectors.double() * wanted.double()).sum(-1).min())
    return loss if loss == loss else float("inf")  # noqa: PLR0124  # not a number


def _largest_channel(module: nn.Module, samples: Sequence[tuple[Tensor, ...]]) -> float:
    """Return how many times the median channel the largest one of the residual stream is."""
    ratios = [1.0]

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].abs().amax(0)
        ratios.append(float(channels.amax() / channels.median().clamp_min(1e-30)))

    blocks = [part for part in module.modules() if isinstance(part, Block)]
    handles = [block.register_forward_pre_hook(note) for block in blocks]
    try:
        with torch.no_grad():
            for sample in samples:
                module(*sample)
    finally:
        for handle in handles:
            handle.remove()
    return max(ratios)
