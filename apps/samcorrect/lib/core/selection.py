"""Which image a person should see next."""

import numpy as np

WHY_UNSCORED = "not scored yet"
WHY_WORST = "lowest quality score of the images that wait"
WHY_AUDIT = "drawn at random for the audit share"
WHY_RANDOM = "drawn at random"
# Images served for these reasons are a random sample; those served worst first are not.
WHYS_AT_RANDOM = (WHY_AUDIT, WHY_RANDOM)


def draw_is_audit(audit_share: float, rng: np.random.Generator) -> bool:
    """Whether the next image is drawn at random: true in `audit_share` of the draws."""
    return bool(rng.random() < audit_share)
