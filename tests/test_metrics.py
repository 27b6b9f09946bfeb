"""The measures themselves: values worked out by hand, and NaN never passes."""

from __future__ import annotations

import numpy as np
import pytest
from metrics import close, equal_greedy, kl, log_softmax, relative_error


def test_relative_error_is_the_largest_difference_over_the_largest_wanted_value() -> None:
    want = np.array([[1.0, -4.0], [2.0, 0.0]])
    got = np.array([[1.0, -4.0], [2.5, 0.1]])
    assert relative_error(got, want) == 0.5 / 4.0
    assert relative_error(want, want) == 0.0


def test_close_refuses_nan_and_other_shapes() -> None:
    want = np.ones(3)
    close(want * (1 + 1e-7), want, 1e-6)
    for bad in (want * (1 + 1e-5), np.array([1.0, np.nan, 1.0])):
        with pytest.raises(AssertionError, match="relative error"):
            close(bad, want, 1e-6)
    with pytest.raises(AssertionError, match="shape"):
        close(want[:1], want, 1e-6)  # would broadcast


def test_kl_of_two_coins() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = ln 2 - ln 3 / 2, KL(q || p) = 3/4 ln 3 - ln 2
    fair, bent = np.log([[1.0, 1.0]]), np.log([[1.0, 3.0]])
    assert kl(fair, bent) == pytest.approx(np.log(2) - np.log(3) / 2, abs=1e-15)
    assert kl(bent, fair) == pytest.approx(0.75 * np.log(3) - np.log(2), abs=1e-15)


def test_kl_is_a_mean_over_positions_and_ignores_a_shift() -> None:
    fair, bent = np.log([[1.0, 1.0]]), np.log([[1.0, 3.0]])
    two = kl(np.vstack([fair, fair]), np.vstack([bent, fair]))
    assert two == pytest.approx(kl(fair, bent) / 2, abs=1e-15)
    assert kl(fair, fair + 1000.0) == pytest.approx(0.0, abs=1e-12)


def test_log_softmax_survives_large_logits_and_shows_nan() -> None:
    assert np.exp(log_softmax(np.array([[1e4, 1e4]]))) == pytest.approx(0.5)
    assert np.isnan(kl(np.array([[0.0, np.nan]]), np.zeros((1, 2))))


def test_greedy_tokens_are_counted_up_to_the_first_that_differs() -> None:
    reference = np.array([[9.0, 1.0, 0.0], [0.0, 5.0, 1.0], [2.0, 1.0, 7.0], [0.0, 1.0, 8.0]])
    assert equal_greedy(reference, np.array([0, 1, 2, 2])) == (4, 4)
    assert equal_greedy(reference, np.array([0, 1, 0, 2])) == (2, 4)
    reference[1] = [0.0, 5.0, 4.9951]  # a gap of 0.98e-3 of the range
    assert equal_greedy(reference, np.array([0, 1, 2, 2])) == (4, 1)
    reference[1, 2] = 4.9949
    assert equal_greedy(reference, np.array([0, 2, 2, 2])) == (1, 4)
    reference[2, 0] = np.nan
    assert equal_greedy(reference, np.array([0, 1, 2, 2]))[1] == 2
