"""Confidence intervals against textbook numbers and SciPy's own tests."""

import pytest
from scipy import stats

from attnorm.reporting.comparison import difference, difference_to_constant

AN, BN = [21.0, 22.0, 23.5], [23.1, 23.9, 24.0, 25.2]


def test_welchs_interval_is_scipys() -> None:
    found = difference(AN, BN)
    interval = stats.ttest_ind(AN, BN, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(66.5 / 3 - 96.2 / 4)
    assert found.margin == pytest.approx((interval.high - interval.low) / 2)
    assert found.value - found.margin == pytest.approx(interval.low)


def test_the_interval_to_a_printed_figure_is_students() -> None:
    found = difference_to_constant([1.0, 2.0, 3.0], 1.5)
    assert found.value == 0.5
    assert found.margin == pytest.approx(4.302653 / 3**0.5, rel=1e-6), "t(0.975; 2) s / sqrt(n)"


def test_one_seed_gives_no_interval_and_is_never_clear() -> None:
    assert difference([1.0], BN).margin is None
    assert not difference([1.0], BN).is_clear
    assert difference_to_constant([1.0], 2.0).margin is None


def test_a_difference_is_clear_where_its_interval_leaves_zero_out() -> None:
    assert difference([1.0, 1.1, 0.9], [5.0, 5.1, 4.9]).is_clear
    assert not difference([1.0, 3.0, 2.0], [2.1, 0.9, 3.1]).is_clear
    assert difference([1.0, 1.0], [2.0, 2.0]).margin == 0.0
