"""Losses as pure functions of tensors: fp32 inside, one number a position or a sequence, no reduction over them.

Shape suffixes as in ``tensors``; B counts sequences. A function knows no model, no config and no device.
"""

from duet_unlearn.losses.distillation import bild, demoted, forward_kl, gkd, push_down, reverse_kl, topk_huber
from duet_unlearn.losses.preference import dpo, flat, npo, simnpo
from duet_unlearn.losses.tokens import ceu, cross_entropy, gradient_ascent, maxent, satimp, undial, wga

__all__ = [
    "bild",
    "ceu",
    "cross_entropy",
    "demoted",
    "dpo",
    "flat",
    "forward_kl",
    "gkd",
    "gradient_ascent",
    "maxent",
    "npo",
    "push_down",
    "reverse_kl",
    "satimp",
    "simnpo",
    "topk_huber",
    "undial",
    "wga",
]
