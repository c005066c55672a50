"""The stride benchmark looks for seams where views begin and end, and nowhere else."""

from tests.benchmarks.strides_run import view_edges


def test_views_begin_and_end_inside_the_canvas() -> None:
    assert view_edges(128, window=64, stride=32) == [32, 64, 96]
    assert view_edges(100, window=64, stride=32) == [32, 36, 64, 96]  # the last view is flush with the edge


def test_one_view_has_no_edges_inside() -> None:
    assert view_edges(64, window=64, stride=8) == []
