"""Clicks on masks drawn by hand."""

import numpy as np
import pytest

from samcorrect.lib.core.clicks import (
    boxes_around,
    click_fit,
    clicked_parts,
    follow_clicks,
    moved_boxes,
    next_click,
    respected,
)


def rectangle(*boxes: tuple[int, int, int, int], shape=(40, 50)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for start0, start1, stop0, stop1 in boxes:
        mask[start0:stop0, start1:stop1] = True
    return mask


def test_the_first_click_is_in_the_middle_of_the_object():
    # 5 x 11: the deepest pixels lie in the middle row, three from every edge.
    click = next_click(np.zeros((40, 50), bool), rectangle((10, 20, 15, 31)))
    assert click[0] == 12
    assert 22 <= click[1] <= 28
    assert click[2] is True


def test_the_next_click_is_in_the_largest_error_of_either_kind():
    truth = rectangle((10, 10, 20, 20))
    # 3 x 10 are missing, and 5 x 5 are too many.
    mask = rectangle((13, 10, 20, 20), (30, 30, 35, 35))
    assert next_click(mask, truth) == (32, 32, False)
    assert next_click(rectangle((13, 10, 20, 20)), truth)[::2] == (11, True)
    assert next_click(truth, truth) is None


def test_an_error_at_the_border_of_the_image_ends_there():
    assert next_click(np.zeros((5, 5), bool), np.ones((5, 5), bool)) == (2, 2, True)


def test_boxes_around_a_click_by_hand():
    boxes = boxes_around([(10, 30, True), (0, 0, False)], (40, 50))
    # The first is 0.10 x 50 wide; the last, 0.64 x 50 = 32, is cut by the slice.
    assert boxes[0].tolist() == [8, 28, 13, 33]
    assert boxes[-1].tolist() == [0, 14.5, 26.5, 46.5]
    # Two clicks: the box of both, widened.
    assert boxes_around([(10, 30, True), (20, 10, True)], (40, 50))[0].tolist() == [8, 8, 23, 33]


def test_a_missing_part_moves_the_sides_to_the_click_and_as_far_again():
    box, mask = np.array([10.0, 10, 20, 20]), rectangle((10, 10, 20, 20))
    click = (25, 15, True)
    # The click's middle is 5.5 past the side at 20; 2 pixels of margin.
    moved = moved_boxes(box, mask, click, [click])
    assert moved.tolist() == [[10, 10, 27.5, 20], [10, 10, 33, 20]]
    # Inside the box no side is in the way.
    assert moved_boxes(box, rectangle((10, 10, 14, 20)), (18, 12, True), []).shape == (0, 4)


def test_a_part_too_many_moves_one_side_and_keeps_what_was_clicked():
    box, mask = np.array([10.0, 10, 30, 20]), rectangle((10, 10, 30, 20))
    clicks = [(27, 12, True), (13, 18, False)]
    moved = moved_boxes(box, mask, clicks[1], clicks).tolist()
    # The start of axis 0 to 13.5 and to 17; the stop of axis 1 to 18.5 and to 17. Other sides would lose the first
    # click.
    assert moved == [[13.5, 10, 30, 20], [17, 10, 30, 20], [10, 10, 30, 18.5], [10, 10, 30, 17]]
    assert moved_boxes(box, np.zeros((40, 50), bool), clicks[1], clicks).shape[1] == 4


def test_a_click_fits_a_change_in_whose_middle_it_is():
    before = rectangle((10, 10, 20, 20))
    after = rectangle((10, 10, 20, 29))
    # The change is 10 x 9; its deepest pixels lie 5 deep.
    assert click_fit(before, after, (14, 24, True)) == 1
    assert click_fit(before, after, (14, 28, True)) == pytest.approx(1 / 5)
    assert click_fit(before, after, (14, 24, False)) == 0
    assert click_fit(before, after, (30, 40, True)) == 0
    assert click_fit(before, before, (14, 14, True)) == 0


def test_a_larger_change_elsewhere_speaks_against_a_mask():
    before = rectangle((10, 10, 20, 20))
    after = rectangle((10, 10, 20, 24), (25, 30, 37, 42))
    # 4 columns are added at the click, 2 deep; the other part is 6 deep.
    assert click_fit(before, after, (14, 21, True)) == pytest.approx(2 / 6)


def test_parts_without_a_click_are_no_part_of_the_object():
    mask = rectangle((0, 0, 5, 5), (10, 10, 15, 15))
    assert np.array_equal(clicked_parts(mask, [(12, 12, True), (2, 2, False)]), rectangle((10, 10, 15, 15)))
    assert np.array_equal(clicked_parts(mask, [(30, 30, True)]), mask)
    assert respected(mask, [(12, 12, True), (2, 2, False), (30, 30, False)]).tolist() == [True, False, True]
    assert respected(mask, []).shape == (0,)


def test_a_disc_changes_sides_up_to_the_edge_of_the_mask():
    mask = rectangle((10, 10, 20, 20))
    made = follow_clicks(mask, [(14, 24, True)])
    # The nearest pixel of the mask is 5 away.
    assert made[14, 20:29].all()
    assert not made[14, 29]
    assert np.array_equal(made & mask, mask)
    cut = follow_clicks(mask, [(14, 17, False)])
    # The nearest pixel outside is 3 away.
    assert not cut[14, 15:20].any()
    assert cut[14, 14]


def test_clicks_of_both_kinds_are_respected_however_near_they_are(rng):
    for _ in range(50):
        mask = rng.random((20, 20)) > 0.5
        places = rng.choice(400, 8, replace=False)
        clicks = [(int(p // 20), int(p % 20), bool(k % 2)) for k, p in enumerate(places)]
        before = mask.copy()
        assert respected(follow_clicks(mask, clicks), clicks).all()
        assert np.array_equal(mask, before)
    # On an empty mask a click marks its surroundings, on a full one it clears them.
    assert follow_clicks(np.zeros((9, 9), bool), [(4, 4, True)]).sum() == 9
    assert (~follow_clicks(np.ones((9, 9), bool), [(4, 4, False)])).sum() == 9
