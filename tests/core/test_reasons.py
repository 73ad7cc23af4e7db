"""Reasons in words."""

import numpy as np

from samcorrect.lib.core.reasons import explain


def test_a_reason_names_the_structure_the_value_and_the_usual_one():
    usual = {"peer_dice": (0.9, 0.05), "stability": (0.92, 0.05)}
    told = explain({"peer_dice": 0.5, "stability": 0.9}, usual, structure="heart")
    assert len(told) == 1
    assert told[0].startswith("heart: its area overlaps little")
    assert told[0].endswith("(0.50, usual 0.90)")
    assert explain({"peer_dice": np.nan}, usual, structure="heart") == []
    assert explain({"peer_dice": 0.5}, {"peer_dice": (np.nan, np.nan)}, structure="heart") == []


def test_the_first_reason_is_the_most_unusual_and_not_the_one_that_varies_most():
    # Half of all labels are 0.3 or more below the median of how ordinary their area is; none is so far below in Dice.
    usual = {"cohort_area": (0.8, 0.3), "peer_dice": (0.97, 0.01), "stability": (0.98, 0.0)}
    told = explain({"cohort_area": 0.3, "peer_dice": 0.85, "stability": 0.88}, usual, structure="heart")
    assert [reason.split("(")[1][:4] for reason in told] == ["0.85", "0.88", "0.30"]
