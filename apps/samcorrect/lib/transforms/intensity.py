"""The values of an image scaled to [0, 1] in two steps, so that a slice is scaled alone as it is in its volume: what
becomes 0 and 1 is a fact of the whole image.
"""

import numpy as np

# Scanner overshoot and burnt-in marks lie outside these; the same for every modality.
CLIP_PERCENTILES = (0.5, 99.5)


def intensity_range(array: np.ndarray) -> tuple[float, float]:
    """The values of an image that become 0 and 1: its percentiles, or where these are equal its ends.

    Args:
        array: Any shape, finite, at least one value.
    """
    low, high = np.percentile(array, CLIP_PERCENTILES)
    return (low, high) if low < high else (float(array.min()), float(array.max()))


def scale_intensity(array: np.ndarray, low_high: tuple[float, float]) -> np.ndarray:
    """Clip values at a range and scale it to [0, 1].

    Args:
        array: Any shape.
        low_high: What becomes 0 and 1.

    Returns:
        float32 of the same shape; all zero where the range is empty.
    """
    low, high = low_high
    if high <= low:
        return np.zeros(array.shape, np.float32)
    return np.clip((array.astype(np.float32) - low) / (high - low), 0, 1).astype(np.float32)
