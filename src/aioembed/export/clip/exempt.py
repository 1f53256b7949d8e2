"""The linears of an int8 program that stay float32, because rounding them would cost too much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aioembed.export.clip.rounding import imitated_int8

__all__ = ["exempt_linears"]

_MOST_LOSS = 7e-4
_MOST_TOKENS = 800
"""Tokens or patches of the samples that are tried: each linear costs a pass over them."""


def exempt_linears(
    module: nn.Module, samples: Sequence[tuple[Tensor, ...]], wanted: Tensor
) -> tuple[str, ...]:
    """Return the names of the linears to keep, none where int8 does well enough.

    Each linear is rounded alone, and those go first that lose the most cosine per weight: what
    single linears lose adds up to what all of them lose, nearly.

    Args:
        module: A balanced tower; left as it is.
        samples: Inputs.
        wanted: Their vectors by transformers, `(samples, embedding_dim)`.
    """
    tokens = sum(sample[0].shape[1] for sample in samples)
    step = -(-tokens // _MOST_TOKENS)
    samples, wanted = samples[::step], wanted[::step]
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if _loss(module, linears, samples, wanted) <= _MOST_LOSS:
        return ()
    unrounded = _loss(module, [], samples, wanted)
    losses = {name: _loss(module, [name], samples, wanted) - unrounded for name in linears}
    linears.sort(key=lambda name: losses[name] / _weights(module, name))
    exempt: list[str] = []
    while (too_much := _loss(module, linears, samples, wanted) - _MOST_LOSS) > 0 and linears:
        while too_much > 0 and linears:
            exempt.append(linears.pop())
            too_much -= losses[exempt[-1]]
    return tuple(sorted(exempt))


def _weights(module: nn.Module, name: str) -> int:
    return sum(parameter.numel() for parameter in module.get_submodule(name).parameters())


def _loss(
    module: nn.Module, rounded: Sequence[str], samples: Sequence[tuple[Tensor, ...]], wanted: Tensor
) -> float:
    """Return 1 - the lowest cosine with some linears rounded."""
    linears = [module.get_submodule(name) for name in rounded]
    with torch.no_grad(), imitated_int8([part for part in linears if isinstance(part, nn.Linear)]):
        vectors = torch.cat([module(*sample) for sample in samples])
    return 1 - float((vectors.double() * wanted.double()).sum(-1).min())
