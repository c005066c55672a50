import pytest
from hypothesis import given
from hypothesis import strategies as st

from views import View, make_views, offsets


def test_one_window_is_one_view() -> None:
    assert make_views(64, 64, window=64, stride=8) == [View(0, 0)]


def test_views_of_a_multiple_of_the_stride_are_those_of_the_paper() -> None:
    assert len(make_views(64, 256, window=64, stride=8)) == 25
    assert make_views(96, 64, window=64, stride=8) == [View(top, 0) for top in (0, 8, 16, 24, 32)]


def test_last_view_is_flush_with_the_edge() -> None:
    assert offsets(71, 64, 8) == [0, 7]
    assert offsets(75, 64, 8) == [0, 8, 11]


@given(height=st.integers(8, 60), width=st.integers(8, 60), stride=st.integers(1, 8))
def test_every_cell_is_covered_and_no_view_leaves_the_canvas_or_repeats(height: int, width: int, stride: int) -> None:
    views = make_views(height, width, window=8, stride=stride)
    covered = {(y, x) for top, left in views for y in range(top, top + 8) for x in range(left, left + 8)}
    assert covered == {(y, x) for y in range(height) for x in range(width)}
    assert len(set(views)) == len(views)


@pytest.mark.parametrize(("height", "width"), [(63, 64), (64, 1)])
def test_canvas_below_a_window_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least 64 x 64"):
        make_views(height, width, window=64, stride=8)


@pytest.mark.parametrize("stride", [0, -8, 65])
def test_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="view_stride"):
        make_views(64, 64, window=64, stride=stride)
