"""The queue: worst first, never twice, never what somebody else holds."""

import time

import numpy as np
import pytest
from scipy.stats import binomtest

from samcorrect.lib.core.selection import WHY_AUDIT
from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.cohort import best_labels
from samcorrect.lib.loop.queue import HEAD_SIZE, next_image
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.schema import QualityRow

SCORES = {f"case{n}": score for n, score in enumerate([0.9, 0.8, 0.1, 0.7, 0.95, 0.2, 0.6, 0.5, 0.85, 0.75])}
WORST_FIRST = sorted(SCORES, key=SCORES.__getitem__)


@pytest.fixture
def scored(labelled):
    workspace = labelled(audit_share=0)
    for image_id, row in best_labels(workspace).items():
        quality = QualityRow(
            structure_index=0, score=SCORES[image_id], expected_dice=0.5, expected_dice_low=0.3, expected_dice_high=0.8,
            features={}, reasons=[f"reason of {image_id}"], created_at=0.0, label_version_id=row.id,
        )  # fmt: skip
        workspace.store.ledger.set_quality(row.id, [quality])
    return workspace


def test_the_worst_comes_first_with_its_score_and_reasons(scored):
    chosen = next_image(scored, "anna", strategy="lowest_quality")
    assert (chosen.image_id, chosen.score) == ("case2", 0.1)
    assert (chosen.expected_dice_low, chosen.expected_dice, chosen.expected_dice_high) == (0.3, 0.5, 0.8)
    assert chosen.reasons == ["reason of case2"]
    assert chosen.why.startswith("lowest quality score")


def test_two_people_share_the_queue_and_nobody_is_given_an_image_of_the_other(scored):
    given = {"anna": [], "ben": []}
    for _ in range(5):
        for holder, images in given.items():
            images.append(next_image(scored, holder, strategy="lowest_quality").image_id)
    assert [i for pair in zip(given["anna"], given["ben"], strict=True) for i in pair] == WORST_FIRST
    assert next_image(scored, "carl", strategy="lowest_quality") is None
    # All wait for somebody: anna gets the worst of her own again.
    assert next_image(scored, "anna", strategy="lowest_quality").image_id in given["anna"]


def test_a_lease_ends(scored):
    assert next_image(scored, "anna", strategy="lowest_quality", now=1000.0).image_id == "case2"
    lease_s = scored.settings.lease_s
    assert next_image(scored, "ben", strategy="lowest_quality", now=1000.0 + lease_s - 1).image_id == "case5"
    assert next_image(scored, "carl", strategy="lowest_quality", now=1000.0 + lease_s + 1).image_id == "case2"


def test_what_is_approved_never_comes_again(scored, phantoms):
    scored.store.submit_label("case2", phantoms.labels / "case2.png", tag="final", user="anna")
    assert next_image(scored, "ben", strategy="lowest_quality").image_id == "case5"
    for image_id in SCORES:
        scored.store.submit_label(image_id, phantoms.labels / f"{image_id}.png", tag="final", user="anna")
    assert next_image(scored, "ben", strategy="lowest_quality") is None
    assert next_image(scored, "ben", strategy="random") is None


def test_the_audit_share_and_random_draw_from_all(scored):
    audited = scored.with_settings(audit_share=1)
    draws = [next_image(audited, "anna", strategy="lowest_quality", rng=np.random.default_rng(1)) for _ in range(10)]
    assert {d.image_id for d in draws} == set(SCORES)
    assert all("audit share" in d.why for d in draws)
    assert [d.image_id for d in draws] != WORST_FIRST
    # All are hers: she gets one again, and it stays one of the audit share.
    assert "audit share" in next_image(scored, "anna", strategy="lowest_quality").why
    assert scored.store.ledger.release("anna", now=time.time()) == sorted(SCORES)
    assert next_image(scored, "anna", strategy="random").why == "drawn at random"


def test_the_audit_share_is_what_was_set(make_studies):
    n_draws, share = 400, 0.3
    workspace = open_workspace(make_studies("a.png", "b.png", "c.png"), Settings(threads=1, audit_share=share))
    rng, n_audits = np.random.default_rng(5), 0
    for _ in range(n_draws):
        n_audits += next_image(workspace, "anna", strategy="lowest_quality", rng=rng).why == WHY_AUDIT
        workspace.store.ledger.release("anna", now=time.time())
    assert binomtest(n_audits, n_draws, share).pvalue > 0.01


def test_who_finds_a_whole_head_taken_is_given_the_next(scored, monkeypatch):
    ledger = scored.store.ledger
    take, taken = ledger.take_lease, []

    def take_after_others(image_id, holder, **of):
        if len(taken) < HEAD_SIZE:
            taken.append(image_id)
            take(image_id, f"other {len(taken)}", **of)
        return take(image_id, holder, **of)

    monkeypatch.setattr(ledger, "take_lease", take_after_others)
    assert next_image(scored, "anna", strategy="lowest_quality").image_id == WORST_FIRST[HEAD_SIZE]
    assert taken == WORST_FIRST[:HEAD_SIZE]


def test_an_expected_dice_is_a_prior_until_approvals_have_calibrated_it(scored):
    assert next_image(scored, "anna", strategy="lowest_quality").is_prior
    label = scored.store.ledger.best_label("case5")
    row = scored.store.ledger.quality(label.id)[0]
    values = {c.key: getattr(row, c.key) for c in QualityRow.__table__.columns if c.key != "id"}
    scored.store.ledger.set_quality(label.id, [QualityRow(**values | {"n_approved": 12})])
    assert next_image(scored, "anna", strategy="lowest_quality").is_prior is False


def test_an_image_without_score_comes_before_all_others(phantom_workspace):
    chosen = next_image(phantom_workspace(audit_share=0), "anna", strategy="lowest_quality")
    assert (chosen.image_id, chosen.score, chosen.why) == ("case0", None, "not scored yet")


def test_an_unknown_strategy_is_answered_with_the_known_ones(scored):
    with pytest.raises(RequestError, match="no strategy 'best'; known are lowest_quality, random"):
        next_image(scored, "anna", strategy="best")
