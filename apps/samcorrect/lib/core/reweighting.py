"""Which labels and which pixels a training believes, and how much.

The preset samcorrect weighs images by how often a training draws them: by `posterior_good` (a tenth at least), or, for
peers and correctors, by the share of their structures that are trusted. The student draws what people approved more
often than that: a few exact labels among many that share the faults of one SAM would else hardly be heard. Pixels weigh
0 or 1: those around a structure that is not trusted (its label, what its peers see instead, and a margin) and those of
a corrected structure where its judge says otherwise are ignored. No weight in between: labels and students that learnt
from their like err together, so entropy and agreement are no measure of how wrong a pixel is once they agree.
huang2023 has a rule of its own. `core.losses` multiplies the unreduced loss with the weights of pixels and divides by
their sum.
"""

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from samcorrect.lib.core.losses import cross_entropy_map
from samcorrect.lib.core.quality import robust_z

# arXiv 2308.00883, authors' code: the share of a batch dropped for its loss, the quantile of pixel losses that is
# dropped, and the part of the training (30 of 150 epochs) before pixels are dropped.
HUANG_SAMPLE_SHARE = 0.10
HUANG_PIXEL_QUANTILE = 0.98
HUANG_WARMUP_SHARE = 0.2
# Yu et al. (MICCAI 2019), as most who learn a few labelled images beside many others: half of each batch is labelled.
APPROVED_SHARE = 0.5
# So that a training does not consist of one image that somebody approved.
MAX_APPROVED_FACTOR = 10.0
# Mixture components closer than this (in units of their pooled deviation) are one population.
MIN_SEPARATION = 1.5
MIN_LABELS_FOR_MIXTURE = 8
# Kass and Raftery (1995): so much in BIC is strong evidence. In 3, 0 and 1% of the draws of 8, 16 or 24 labels of one
# normal population two are found; in 33, 7 and 7% where any gain is enough, mostly with half of the labels bad.
MIN_BIC_GAIN = 6.0
EMPTY_IS_GOOD = 0.5
# Iglewicz and Hoaglin (1993): a robust z beyond this is an outlier.
MAX_OUTLIER_Z = 3.5
# The better half of a normal population has the mean +0.80 and the deviation 0.60 (in its own deviations), so this
# reaches down to -1.61, below which 5% lie.
BETTER_HALF_DEVIATIONS = 4.0


def posterior_good(scores: np.ndarray, *, is_empty: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Posterior that each label belongs to the better of two populations of scores.

    A two-component Gaussian mixture on the logits of the scores; one population unless BIC is strong evidence for two,
    or where the two overlap. A score far below the median is never good: a few bad labels among many are no population
    of their own.

    Args:
        scores: (N,) in [0, 1]; nan is not defined.
        is_empty: (N,) bool, labels that say that the structure is not there; by default none does. What agrees with
            them scores 1 and what does not about 0, which says nothing of the others: they are good from 0.5 on, and no
            part of the populations.
        seed: Of the mixture's initialisation.

    Returns:
        (N,) in [0, 1]; 1 for all but outliers where there is one population; nan where the score is. Never falls as the
        score rises.
    """
    if is_empty is not None:
        of_others = posterior_good(np.where(is_empty, np.nan, scores), seed=seed)
        return np.where(is_empty & ~np.isnan(scores), scores >= EMPTY_IS_GOOD, of_others)
    posterior = np.where(np.isnan(scores), np.nan, 1.0)
    defined = ~np.isnan(scores)
    if defined.sum() < MIN_LABELS_FOR_MIXTURE:
        return posterior
    logits = _logits(scores[defined])[:, None]
    posterior[defined] = np.where(robust_z(logits[:, 0]) < -MAX_OUTLIER_Z, 0.0, 1.0)
    one, two = (
        GaussianMixture(n, random_state=seed, reg_covar=1e-3, n_init=3 if n == 2 else 1).fit(logits) for n in (1, 2)
    )
    good = int(np.argmax(two.means_[:, 0]))
    gap = abs(two.means_[0, 0] - two.means_[1, 0])
    pooled = float(np.sqrt((two.weights_ * two.covariances_[:, 0, 0]).sum()))
    if one.bic(logits) - two.bic(logits) < MIN_BIC_GAIN or gap < MIN_SEPARATION * pooled:
        return posterior
    # A wide component wins at both ends of the line; a higher score must not be trusted less.
    order = np.argsort(logits[:, 0], kind="stable")
    sorted_posterior = np.maximum.accumulate(two.predict_proba(logits)[order, good])
    values = np.empty(len(order))
    values[order] = sorted_posterior
    posterior[defined] = np.minimum(posterior[defined], values)
    return posterior


def below_better_half(scores: np.ndarray) -> np.ndarray:
    """Labels that score far below the better half, which bad labels do not reach while they are a minority.

    Args:
        scores: (N,) in [0, 1]; nan is not defined. Those of empty labels do not belong here.

    Returns:
        (N,) bool: more than BETTER_HALF_DEVIATIONS below the mean of the better half, on the logits of the scores; none
        below eight scores. Of one normal population 5% are.
    """
    defined = ~np.isnan(scores)
    if defined.sum() < MIN_LABELS_FOR_MIXTURE:
        return np.zeros(scores.shape, bool)
    logits = np.where(defined, _logits(np.where(defined, scores, 0.5)), np.nan)
    better = np.sort(logits[defined])[defined.sum() // 2 :]
    return np.where(defined, logits, np.inf) < better.mean() - BETTER_HALF_DEVIATIONS * better.std()


def favour_approved(sampling: torch.Tensor, is_approved: torch.Tensor) -> torch.Tensor:
    """How often a training draws each slice where people approved the labels of some.

    Args:
        sampling: (M,) how often it draws them otherwise, not negative.
        is_approved: (M,) bool.

    Returns:
        (M,) with what is approved multiplied by one factor, so that it is half of what is drawn; by at most
        MAX_APPROVED_FACTOR, and by 1 where it is half of it already or there is nothing else.
    """
    of_people, others = float(sampling[is_approved].sum()), float(sampling[~is_approved].sum())
    if of_people <= 0 or others <= 0:
        return sampling
    wanted = APPROVED_SHARE / (1 - APPROVED_SHARE) * others / of_people
    return torch.where(is_approved, sampling * min(max(wanted, 1.0), MAX_APPROVED_FACTOR), sampling)


def huang_weights(logits: torch.Tensor, targets: torch.Tensor, *, progress: float) -> torch.Tensor:
    """Multi-level reweighting of arXiv 2308.00883, with the faults of its released code repaired.

    Image level: the samples with the highest mean cross entropy in the batch (10%, at least one of a batch of two or
    more) weigh 0. Pixel level, after a fifth of the training: pixels above the batch's 0.98 quantile of cross entropy
    weigh 0.

    Args:
        logits: (B, C, H, W), any gradient is cut.
        targets: (B, H, W) int64.
        progress: Share of the training done, [0, 1).

    Returns:
        (B, H, W) float32 of zeros and ones.
    """
    losses = cross_entropy_map(logits.detach(), targets)
    weights = torch.ones_like(losses)
    n_batch = len(losses)
    n_dropped = max(1, round(HUANG_SAMPLE_SHARE * n_batch)) if n_batch > 1 else 0
    if n_dropped:
        weights[losses.flatten(1).mean(1).topk(n_dropped).indices] = 0
    if progress >= HUANG_WARMUP_SHARE:
        # A strided sample gives the quantile well enough; torch.quantile refuses more than 16 million values.
        flat = losses.flatten()
        threshold = torch.quantile(flat[:: max(1, flat.numel() // 100_000)], HUANG_PIXEL_QUANTILE)
        weights = weights * (losses <= threshold)
    return weights


def _logits(scores: np.ndarray) -> np.ndarray:
    bounded = np.clip(scores, 1e-3, 1 - 1e-3)
    return np.log(bounded / (1 - bounded))
