"""Why a head is fitted before the layers below it are tuned: the two-layer linear theory of LP-FT
(Kumar et al. 2022, arXiv 2202.10054, section 3), in plain arithmetic.

A model f(x) = v'Bx has features B and a head v. What is learnt from lies in a subspace of m
directions, what is asked lies in all d. From a new random head, tuning moves the features only where
it has seen inputs, and so tears them apart from the rest; from a fitted head there is little to
move.
"""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
D, K, M, N = 40, 10, 20, 40  # inputs, features, directions seen, rows
STEPS, RATE = 6000, 0.02


class Errors(NamedTuple):
    seen: float
    """Mean squared error on inputs like those learnt from."""
    unseen: float
    """On inputs of all directions."""


def setting(seed: int, noise: float) -> tuple[Matrix, Matrix, Matrix, Matrix, Matrix, Matrix]:
    """Features to begin with (the true ones turned, and wrong by `noise`), rows, their answers, and
    other rows of all directions."""
    draw = np.random.default_rng(seed)
    true_B = np.linalg.qr(draw.normal(size=(D, K)))[0].T
    true_v = draw.normal(size=K)
    turn = np.linalg.qr(draw.normal(size=(K, K)))[0]
    wrong = draw.normal(size=(K, D)) / np.sqrt(D)
    features = np.linalg.qr((turn @ true_B + noise * wrong).T)[0].T
    span = np.linalg.qr(draw.normal(size=(D, M)))[0]
    x = draw.normal(size=(N, M)) @ span.T
    other = draw.normal(size=(2000, M)) @ span.T, draw.normal(size=(2000, D))
    answers = [rows @ true_B.T @ true_v for rows in (x, *other)]
    head = draw.normal(size=K) / np.sqrt(K)
    return features, head, x, answers[0], np.stack(other), np.stack(answers[1:])


def probe(B: Matrix, x: Matrix, y: Matrix) -> Matrix:
    """The head that fits best, of the smallest norm."""
    found: Matrix = np.linalg.pinv(x @ B.T) @ y
    return found


def tuned(B: Matrix, v: Matrix, x: Matrix, y: Matrix) -> tuple[Matrix, Matrix]:
    """Gradient descent on both layers."""
    B, v = B.copy(), v.copy()
    for _ in range(STEPS):
        wrong = (x @ B.T @ v - y) / len(x)
        B, v = B - RATE * np.outer(v, wrong @ x), v - RATE * (wrong @ x @ B.T)
    return B, v


def errors(seed: int, noise: float) -> dict[str, Errors]:
    B, head, x, y, others, wanted = setting(seed, noise)
    fitted = probe(B, x, y)
    models = {
        "probe": (B, fitted),
        "tuned": tuned(B, head, x, y),
        "probe, then tuned": tuned(B, fitted, x, y),
    }
    return {
        name: Errors(
            *(
                float(np.mean((rows @ b.T @ v - w) ** 2))
                for rows, w in zip(others, wanted, strict=True)
            )
        )
        for name, (b, v) in models.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_good_features_are_torn_by_a_new_head_and_kept_by_a_fitted_one(seed: int) -> None:
    found = errors(seed, noise=0.0)
    assert found["tuned"].seen < 1e-4 and found["tuned"].unseen > 0.05
    for name in ("probe", "probe, then tuned"):
        assert max(found[name]) < 1e-18


@pytest.mark.parametrize("seed", range(5))
def test_with_features_that_are_a_little_wrong_both_together_are_best_everywhere(seed: int) -> None:
    found = errors(seed, noise=0.1)
    both = found["probe, then tuned"]
    assert both.seen < 1e-4 < found["probe"].seen
    assert both.unseen < found["probe"].unseen < found["tuned"].unseen
    assert found["tuned"].unseen > 10 * both.unseen
