"""Graphics cards as their makers describe them, and an estimate of the time that work takes on one."""

from __future__ import annotations

from typing import NamedTuple

from mcm.errors import one_of
from mcm.planning.meter import Work

GB = 10**9
COMPUTE = 0.35  # share of the peak that matrix products and convolutions of such networks reach; an assumption
BANDWIDTH = 0.7  # share of the memory's bandwidth that the other operators reach; an assumption


class Card(NamedTuple):
    """memory in GB (10^9 bytes); bandwidth of it in GB/s; peaks in TFLOP/s, dense, accumulated in float32; None where
    the tensor cores have no such type."""

    memory: float
    bandwidth: float
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float


# The figures of the documents named here, as public summaries repeat them. Dense:
# where a data sheet states those "with sparsity", they are half of its. The GeForce cards' tensor cores
# are half as fast where they accumulate in float32, as training does.
CARDS = {
    "v100": Card(32, 900, 15.7, None, None, 125),  # NVIDIA V100 data sheet, SXM2 32 GB
    "a100-40gb": Card(40, 1555, 19.5, 156, 312, 312),  # NVIDIA A100 data sheet, SXM 40 GB
    "a100": Card(80, 2039, 19.5, 156, 312, 312),  # NVIDIA A100 data sheet, SXM 80 GB
    "h100": Card(80, 3350, 67, 494.5, 989.5, 989.5),  # NVIDIA H100 data sheet, SXM5: 989 | 1979 | 1979 with sparsity
    "l4": Card(24, 300, 30.3, 60, 121, 121),  # NVIDIA L4 data sheet: 120 | 242 | 242 with sparsity
    "l40s": Card(48, 864, 91.6, 183, 362, 362),  # NVIDIA L40S data sheet
    "3090": Card(24, 936, 35.6, 35.6, 71, 71),  # NVIDIA Ampere GA102 whitepaper, GeForce RTX 3090
    "4090": Card(24, 1008, 82.6, 82.6, 165.2, 165.2),  # NVIDIA Ada whitepaper, GeForce RTX 4090
    "5090": Card(32, 1792, 104.8, 104.8, 209.5, 209.5),  # NVIDIA RTX Blackwell whitepaper, GeForce RTX 5090
}


def card(name: str) -> Card:
    """The card of that name. UserError naming those that are known."""
    if name not in CARDS:
        raise one_of("card", name, CARDS)
    return CARDS[name]


def takes(card: Card, precision: str) -> bool:
    """Whether the card's tensor cores have the half-precision type; every card takes fp32."""
    return precision != "bf16" or card.bf16 is not None


def seconds(work: Work, card: Card, precision: str) -> float:
    """An estimate of the time of some work; it was not measured on these cards.

    Matrix products and convolutions go at `COMPUTE` of the card's peak, the bytes of all other operators at `BANDWIDTH`
    of its memory's, one after the other. In fp32 convolutions use TF32 where the card has it and products do not, which
    are PyTorch's defaults. ValueError where the card does not take the precision.
    """
    if not takes(card, precision):
        raise ValueError(f"a card without {precision}")
    half = {"bf16": card.bf16, "fp16": card.fp16}.get(precision)
    convolutions, products = (half, half) if half else (card.tf32 or card.fp32, card.fp32)
    computing = work.convolutions / (convolutions * 1e12) + work.products / (products * 1e12)
    return computing / COMPUTE + work.moved / (card.bandwidth * GB) / BANDWIDTH
