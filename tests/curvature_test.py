"""The largest eigenvalue of a dense matrix (`flatness.curvature`)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatness import curvature


def dense(eigenvalues, seed=0):
    from scipy.sparse.linalg import aslinearoperator

    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    matrix = q * np.array(eigenvalues) @ q.T
    operator = aslinearoperator(matrix)
    operator.products = 0
    matvec = operator.matvec

    def counted(v):
        operator.products += 1
        return matvec(v)

    operator.matvec = counted
    return operator, q


def crowded(seed, n):
    """(eigenvalues of a dense matrix, the matrix, what `largest_eigenvalue` finds from a random start)."""
    rng = np.random.default_rng(seed)
    eigenvalues = rng.standard_normal(n) + 3
    operator, _ = dense(eigenvalues, seed)
    return eigenvalues, operator, *curvature.largest_eigenvalue(operator, None, rng.standard_normal(n))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(2, 60))
def test_lanczos_ends_at_an_eigenvalue_of_the_dense_matrix(seed, n):
    eigenvalues, operator, value, vector = crowded(seed, n)
    assert min(abs(eigenvalues - value)) <= 0.011 * value
    assert np.linalg.norm(operator.matvec(vector) - value * vector) <= 0.011 * value


def test_from_99_of_100_random_starts_it_is_the_largest_of_a_spectrum_without_gaps():
    ends = [crowded(seed, 56) for seed in range(300)]
    assert sum(value < 0.97 * max(eigenvalues) for eigenvalues, _, value, _ in ends) <= 3


def test_a_good_guess_saves_products_and_a_wrong_one_is_corrected():
    rng = np.random.default_rng(0)
    operator, q = dense([*4 * rng.random(398), 5.0, 6.0])
    cold = curvature.largest_eigenvalue(operator, None, rng.standard_normal(400))
    spent, operator.products = operator.products, 0
    warm = curvature.largest_eigenvalue(operator, q[:, -1] + 0.02 * q[:, 0], rng.standard_normal(400))
    assert operator.products <= 8 < spent
    wrong = curvature.largest_eigenvalue(operator, q[:, -2], rng.standard_normal(400))
    for value, _ in (cold, warm, wrong):
        assert value == pytest.approx(6.0, rel=1e-3)
    assert curvature.largest_eigenvalue(operator, np.zeros(3), rng.standard_normal(400))[0] == pytest.approx(
        6, rel=1e-3
    )
