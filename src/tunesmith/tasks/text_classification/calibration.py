"""Probabilities that are as often right as they say: one temperature, fitted on validation rows
(Guo et al. 2017, arXiv 1706.04599), and how far they are off."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH, STEPS = 0.05, 20.0, 60
BINS = 15


def wanted_of(targets: Sequence[tuple[int, ...]], n_labels: int) -> Tensor:
    """(N, C), 1 for a row's labels."""
    found = torch.zeros(len(targets), n_labels, dtype=torch.float64)
    for i, places in enumerate(targets):
        found[i, list(places)] = 1.0
    return found


def nll(logits: Tensor, wanted: Tensor, several: bool, temperature: float = 1.0) -> float:
    """Mean over rows, in nats."""
    z = logits.double() / temperature
    if several:
        return float(F.binary_cross_entropy_with_logits(z, wanted, reduction="mean"))
    return float(-(z.log_softmax(-1) * wanted).sum(-1).mean())


def temperature(logits: Tensor, wanted: Tensor, several: bool) -> float:
    """That with the lowest loss, by golden section over its logarithm: the loss has one minimum in
    1 / T."""
    ratio = (5**0.5 - 1) / 2
    low, high = torch.tensor([LOW, HIGH]).log().tolist()
    for _ in range(STEPS):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        at_a, at_b = (nll(logits, wanted, several, float(torch.tensor(x).exp())) for x in (a, b))
        low, high = (low, b) if at_a <= at_b else (a, high)
    return float(torch.tensor((low + high) / 2).exp())


def calibration_error(probabilities: Tensor, wanted: Tensor, several: bool) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over BINS bins of
    confidence, weighted by their rows; over every label's own where a row may have several."""
    p = probabilities.double()
    if several:
        confidence, right = p.flatten(), wanted.flatten()
    else:
        confidence, best = p.max(-1)
        right = wanted.gather(1, best[:, None]).squeeze(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    error = 0.0
    for b in range(BINS):
        inside = bins == b
        if inside.any():
            gap = float(confidence[inside].mean() - right[inside].mean())
            error += float(inside.double().mean()) * abs(gap)
    return error
