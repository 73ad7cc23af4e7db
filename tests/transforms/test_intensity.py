"""Ranges and scaling worked out by hand."""

import numpy as np
import pytest

from samcorrect.lib.transforms.intensity import intensity_range, scale_intensity


def test_the_range_is_the_percentiles():
    # Of 0 to 200 the half percent is 1 and the 99.5 percent 199.
    assert intensity_range(np.arange(201.0)) == pytest.approx((1, 199))


def test_where_the_percentiles_are_equal_the_range_is_the_ends():
    array = np.zeros(1000)
    array[3] = 7
    assert intensity_range(array) == (0, 7)


def test_values_are_clipped_and_scaled():
    scaled = scale_intensity(np.array([-5, 10, 15, 20, 99]), (10, 20))
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [0, 0, 0.5, 1, 1]


def test_an_empty_range_gives_zeros():
    assert scale_intensity(np.full((2, 3), 4.0), (4, 4)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_slice_is_scaled_as_in_its_volume(rng):
    volume = rng.normal(0, 300, (9, 7, 5)).astype(np.float32)
    whole = scale_intensity(volume, intensity_range(volume))
    assert np.array_equal(scale_intensity(volume[..., 2:3], intensity_range(volume)), whole[..., 2:3])
