"""Why a label scores low, or a structure as a whole is doubtful, in words."""

import numpy as np

from samcorrect.lib.core.quality import structure_doubts

MAX_REASONS = 3
# A feature this far below the cohort's median (in its own units) is worth telling a person, the more of the cohort's
# spreads it lies below, the sooner. Where labels are alike the spread counts as at least this.
REASON_GAP, MIN_SPREAD = 0.08, 0.02
REASONS = {
    "peer_surface_dice": "its outline differs from what students trained on other images predict",
    "peer_dice": "its area overlaps little with what students trained on other images predict",
    "peer_area": "it is larger or smaller than what students trained on other images predict",
    "band_softmin": "students trained on other images are sure of another outline at some places",
    "choice_dice": "its area overlaps little with the prompt's mask that those students prefer",
    "choice_surface_dice": "its outline differs from the prompt's mask that those students prefer",
    "asked_dice": "its area overlaps little with SAM's mask in the box that those students see",
    "asked_area": "it is larger or smaller than SAM's mask in the box that those students see",
    "prompt_agreement": "small changes of the prompt give very different masks",
    "stability": "SAM's mask depends on its threshold",
    "predicted_iou": "SAM itself is not sure of this mask",
    "prompt_dice": "the prompts that SAM is most sure of give other masks",
    "cohort_area": "its area is unusual for this structure",
    "cohort_position": "it lies elsewhere than this structure usually does",
    "cohort_shape": "its outline is more ragged, longer or smoother than this structure's usually is",
    "edge_contrast": "its outline does not lie on edges of the image",
    "neighbour_dice": "its slices do not continue each other",
}

DOUBTS = {
    "present_peer_dice": "students trained on other images predict something else",
    "prompt_agreement": "SAM's mask depends on the prompt",
    "edge_contrast": "the outlines lie on no edges of the image",
}


def explain(features: dict[str, float], usual: dict[str, tuple[float, float]], *, structure: str) -> list[str]:
    """Why a structure's score is low, in words, the strongest reason first; empty where nothing stands out.

    Args:
        features: Name to its value.
        usual: Name to median and spread over the cohort, nan where nothing is defined.
        structure: Its name.
    """
    strength = {
        name: (median - features[name]) / max(spread, MIN_SPREAD)
        for name, (median, spread) in usual.items()
        if median - features.get(name, np.nan) > REASON_GAP
    }
    order = sorted((name for name in strength if name in REASONS), key=lambda name: -strength[name])
    return [
        f"{structure}: {REASONS[name]} ({features[name]:.2f}, usual {usual[name][0]:.2f})"
        for name in order[:MAX_REASONS]
    ]


def doubt_structure(name: str, features: dict[str, np.ndarray], *, is_missed: bool = False) -> str:
    """Why the labels of a structure are doubtful as a whole, in words; "" where they are not.

    Args:
        name: Of the structure.
        features: Name to (n,) values of its labels.
        is_missed: No label shows it, and nobody said that it is not there. Nothing then contradicts the labels:
            students learn from them that there is nothing.
    """
    if is_missed:
        return f"{name}, all labels: none shows it; mark it in a few images, or see whether its prompt fits"
    against = structure_doubts(features)
    told = [f"{DOUBTS[feature]} ({np.nanmedian(features[feature]):.2f} in the median)" for feature in against]
    return f"{name}, all labels: {' and '.join(told)}" if told else ""
