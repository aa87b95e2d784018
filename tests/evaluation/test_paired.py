import pytest

from vdmini_diffusers.evaluation.paired import paired_difference


def test_the_interval_is_students():
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 1.0, 1.0])  # differences 1, 3, 5
    assert found.mean == 3
    assert (found.low, found.high) == pytest.approx((3 - 4.3027 * 2 / 3**0.5, 3 + 4.3027 * 2 / 3**0.5), abs=1e-3)
    assert str(found) == "+3.000 [-1.968, +7.968]"


def test_what_all_seeds_share_cancels():
    shared = [0.1, 0.9, 0.4, 0.7]
    found = paired_difference([value + 0.05 for value in shared], shared)
    assert found == pytest.approx((0.05, 0.05, 0.05))


@pytest.mark.parametrize(("of", "to"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_one_pair_has_no_interval(of, to):
    with pytest.raises(ValueError, match="two pairs of numbers"):
        paired_difference(of, to)
