"""Which image a person should see next."""

import numpy as np

WHY_UNSCORED = "not scored yet"
WHY_WORST = "lowest quality score of the images that wait"
WHY_AUDIT = "drawn at random for the audit share"
WHY_RANDOM = "drawn at random"


def draw_is_audit(audit_share: float, rng: np.random.Generator) -> bool:
    """Whether the next image is drawn at random: true in `audit_share` of the draws."""
    return bool(rng.random() < audit_share)
