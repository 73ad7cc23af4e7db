"""What the doctor finds."""

from samcorrect.lib.loop.doctor import check_installation
from samcorrect.lib.settings import Settings


def failed(checks) -> dict[str, str]:
    return {check.name: check.message for check in checks if not check.is_ok}


def test_all_is_well_with_the_phantoms(phantoms, tmp_path):
    settings = Settings(threads=1, state=tmp_path / "state")
    checks = check_installation(settings, phantoms.images)
    assert failed(checks) == {}
    told = {check.name: check.message for check in checks}
    assert told["studies"] == "10 image(s)"
    assert "right blob, left blob" in told["protocol"]
    assert "0 of 10 image(s) approved" in told["state"]


def test_each_fault_is_told_and_the_other_checks_still_run(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"other weights")
    (tmp_path / "studies").mkdir()
    told = failed(check_installation(Settings(threads=1, sam_weights=weights), tmp_path / "studies"))
    assert set(told) == {"SAM weights", "studies", "protocol"}
    assert "has the SHA-256" in told["SAM weights"]
    assert "no images in" in told["studies"]
    assert "put a protocol.yaml into the studies folder" in told["protocol"]


def test_a_protocol_is_checked_without_studies(tmp_path):
    (tmp_path / "p.yaml").write_text("structures: []")
    told = failed(check_installation(Settings(threads=1, protocol=tmp_path / "p.yaml"), None))
    assert set(told) == {"protocol"}
