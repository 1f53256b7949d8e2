"""What is decided by trying it on samples: the norms' form, and how int8 keeps its accuracy.

Balancing is SmoothQuant's (Xiao et al., SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models, 2023, equation 4 with a migration strength of 0.5).
The runtime quantises a linear's input with one scale per row, and its weights with one scale per
output. A channel that is much larger than the others spends the row's 8 bits on itself. Dividing
the channel and multiplying its weights leaves the product as it is. Divisors of a norm's output
go into the norm, those of the attention's values into the rows that make them, and only those
behind an activation cost a separate product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from aioembed.export.blocks import (
    AttentionHalf,
    Block,
    FeedForward,
    FeedForwardHalf,
    Norm,
    NormForm,
    Projection,
)
from aioembed.export.towers import AttentionPool
from aioembed.models import Precision

__all__ = [
    "NormChoice",
    "balance",
    "choose_norm",
    "choose_table",
    "exempt_linears",
    "imitated_int8",
    "preferred_form",
]

Samples = Sequence[tuple[Tensor, ...]]

_STRENGTH = 0.5
_OUTLIER = 3.0
_LEVELS = 127
_SPAN = 255
_EXACT_ENOUGH = 1e-5
_INT8_SLACK = 1e-4
_INT8_SHARE = 0.2
"""Of a large loss, which exempt linears bring down in either form."""
_MOST_LOSS = 5e-4
"""Of cosine on the samples; other inputs were seen to lose up to 1.7 times that."""
_TABLE_SHARE = 0.5
"""Of that, which the token table may lose in int8: the linears need the rest."""
_MOST_TOKENS = 400
"""Tokens or patches of the samples that each linear is tried on alone."""


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
    build: Callable[[NormForm], nn.Module], precision: Precision, samples: Samples, wanted: Tensor
) -> NormChoice:
    """Try both forms on samples, and take `bn`, the faster, unless it costs accuracy.

    For int8 the quantisation of weights and activations is imitated.

    Args:
        build: Makes the tower in a form.
        precision: Of the program.
        samples: Inputs.
        wanted: Their vectors by transformers, `(samples, embedding_dim)`.
    """

    def tried(form: NormForm) -> tuple[float, float]:
        """Return the loss and the largest channel; the module is gone before the next."""
        module = build(form)
        largest = _largest_channel(module, samples) if form == "ln" else 0.0
        if precision == "fp32":
            return _loss(module, (), samples, wanted), largest
        balance(module, samples)
        return _loss(module, _linears(module), samples, wanted), largest

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
    slack = _EXACT_ENOUGH if precision == "fp32" else max(_INT8_SLACK, _INT8_SHARE * ln_loss)
    return "bn" if bn_loss <= ln_loss + slack else "ln"


def choose_table(
    build: Callable[..., nn.Module], samples: Samples, wanted: Tensor
) -> tuple[nn.Module, str]:
    """Return a text tower with its token table in int8, in int16 if int8 loses too much.

    Args:
        build: Makes the tower; `table` is the dtype of its token table.
        samples: Inputs.
        wanted: Their vectors by transformers, `(samples, embedding_dim)`.

    Returns:
        The tower, and for people why it has that table.
    """
    module = build(table=torch.int8)
    loss = _loss(module, (), samples, wanted)
    reason = f"1 - cosine on {len(samples)} samples is {loss:.1e} with the table alone in int8"
    if loss <= _TABLE_SHARE * _MOST_LOSS:
        return module, f"int8: {reason}"
    del module
    return build(table=torch.int16), f"int16: {reason}"


def _linears(module: nn.Module) -> list[str]:
    """Return the names of all linears."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def _loss(module: nn.Module, rounded: Sequence[str], samples: Samples, wanted: Tensor) -> float:
    """Return 1 - the lowest cosine with some linears rounded; infinite where it is not a number."""
    linears = [cast("nn.Linear", module.get_submodule(name)) for name in rounded]
    with torch.no_grad(), imitated_int8(linears):
        vectors = torch.cat([module(*sample) for sample in samples])
    loss = 1 - float((vectors.double() * wanted.double()).sum(-1).min())
    return math.inf if math.isnan(loss) else loss


@contextmanager
def _watched(
    modules: Iterable[nn.Module], note: Callable[[nn.Module, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    """Show the inputs of modules to a function."""
    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _largest_channel(module: nn.Module, samples: Samples) -> float:
    """Return how many times the median channel the largest one of the residual stream is."""
    ratios = [1.0]

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].abs().amax(0)
        ratios.append(float(channels.amax() / channels.median().clamp_min(1e-30)))

    with _watched([part for part in module.modules() if isinstance(part, Block)], note):
        for sample in samples:
            module(*sample)
    return max(ratios)


@contextmanager
def imitated_int8(linears: Sequence[nn.Linear]) -> Iterator[None]:
    """Round weights per output, and activations per row, as the runtime's int8 linears do.

    Args:
        linears: Rounded inside the context, as they were behind it.
    """
    before = [linear.weight.data for linear in linears]
    for linear in linears:
        scale = linear.weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / _LEVELS
        linear.weight.data = (linear.weight / scale).round() * scale
    handles = [linear.register_forward_pre_hook(_rounded) for linear in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for linear, weight in zip(linears, before, strict=True):
            linear.weight.data = weight


def _rounded(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Round an input to 256 levels between its row's extremes, zero among them."""
    x = inputs[0]
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / _SPAN).clamp_min(1e-30)
    zero = (-low / scale).round()
    return (((x / scale + zero).round().clamp(0, _SPAN) - zero) * scale,)


def balance(tower: nn.Module, samples: Iterable[tuple[Tensor, ...]]) -> int:
    """Balance every linear of a tower behind a norm, the attention or an activation.

    Args:
        tower: Changed in place; its output stays the same up to rounding.
        samples: Inputs to watch the activations on.

    Returns:
        The number of hidden layers whose channels were so uneven that a product was put in.
    """
    largest: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen = inputs[0].abs().flatten(0, -2).amax(0)
        largest[module] = torch.maximum(largest.get(module, seen), seen)

    with _watched([part for part in tower.modules() if isinstance(part, nn.Linear)], note):
        for sample in samples:
            tower(*sample)
    products = 0
    with torch.no_grad():
        for part in tower.modules():
            if isinstance(part, AttentionHalf):
                inputs = [cast("nn.Linear", module) for module in part.attention.inputs]
                part.norm.scale = _divide(inputs, largest)
                values, rows = part.attention.value_rows()
                factors = _divide([part.attention.out], largest)
                values.weight[rows] *= factors.unsqueeze(1)
                values.bias[rows] *= factors
            elif isinstance(part, FeedForwardHalf):
                products += _balance_hidden(part.norm, part.feed_forward, largest)
            elif isinstance(part, AttentionPool):
                products += _balance_hidden(part.inner_norm, part.feed_forward, largest)
            elif isinstance(part, Projection) and part.linear is not None:
                part.norm.scale = _divide([part.linear], largest)
    return products


def _balance_hidden(norm: Norm, layer: FeedForward, largest: dict[nn.Module, Tensor]) -> bool:
    """Balance a feed-forward layer, and return whether it took a separate product."""
    norm.scale = _divide([cast("nn.Linear", module) for module in layer.inputs], largest)
    if _unevenness(largest[layer.out]) <= _OUTLIER:
        return False
    layer.scale = _divide([layer.out], largest)
    return True


def _divide(linears: list[nn.Linear], largest: dict[nn.Module, Tensor]) -> Tensor:
    """Multiply the weights of linears that share an input, and return what it is multiplied by."""
    activation = torch.stack([largest[module] for module in linears]).amax(0)
    weight = torch.stack([module.weight.abs().amax(0) for module in linears]).amax(0)
    tiny = torch.finfo(torch.float32).tiny
    divisors = activation.clamp_min(tiny) ** _STRENGTH / weight.clamp_min(tiny) ** (1 - _STRENGTH)
    usable = (activation > 0) & (weight > 0)
    middle = divisors[usable].log().mean().exp() if bool(usable.any()) else divisors.new_ones(())
    divisors = torch.where(usable, divisors / middle, 1.0)
    for module in linears:
        module.weight *= divisors
    return 1 / divisors


def _unevenness(values: Tensor) -> float:
    """Return how much larger the largest channel is than the median one."""
    median = float(values.median())
    return float(values.amax()) / median if median else 1.0


def exempt_linears(module: nn.Module, samples: Samples, wanted: Tensor) -> tuple[str, ...]:
    """Return the names of the linears that stay float32, none where int8 does well enough.

    Each linear is rounded alone, on some of the samples, and those go first that lose the most
    cosine per weight: what single linears lose adds up to what all of them lose, nearly. What
    they lose together is held against all samples.

    Args:
        module: A balanced tower; left as it is.
        samples: Inputs.
        wanted: Their vectors by transformers, `(samples, embedding_dim)`.
    """
    linears = _linears(module)
    if _loss(module, linears, samples, wanted) <= _MOST_LOSS:
        return ()
    tokens = sum(sample[0].shape[1] for sample in samples)
    few = slice(None, None, -(-tokens // _MOST_TOKENS))
    unrounded = _loss(module, [], samples[few], wanted[few])
    losses = {
        name: _loss(module, [name], samples[few], wanted[few]) - unrounded for name in linears
    }
    linears.sort(key=lambda name: losses[name] / _weights(module, name))
    exempt: list[str] = []
    while linears and (loss := _loss(module, linears, samples, wanted)) > _MOST_LOSS:
        left = sum(losses[name] for name in linears)
        enough = left * _MOST_LOSS / loss
        while linears:
            exempt.append(linears.pop())
            left -= losses[exempt[-1]]
            if not left > enough:
                break
    return tuple(sorted(exempt))


def _weights(module: nn.Module, name: str) -> int:
    return sum(parameter.numel() for parameter in module.get_submodule(name).parameters())
