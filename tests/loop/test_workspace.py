"""The workspace: where its protocol comes from, and what its changes keep."""

import platform
import subprocess
import sys

import numpy as np
import pytest

from samcorrect.lib.errors import ProtocolError, StoreError
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

ONE_STRUCTURE = "structures: [{name: organ, index: 4, prompt: {source: box, xyxy: [0, 0, 1, 1]}}]"


def test_the_protocol_of_the_studies_folder_is_found(make_studies):
    studies = make_studies("a.png")
    (studies / "protocol.yaml").write_text(ONE_STRUCTURE)
    workspace = open_workspace(studies, Settings(threads=1))
    assert workspace.require_protocol().indices == (4,)
    assert workspace.student() is None


def test_a_protocol_that_is_given_wins(make_studies, tmp_path):
    studies = make_studies("a.png")
    (studies / "protocol.yaml").write_text(ONE_STRUCTURE)
    (tmp_path / "other.yaml").write_text(ONE_STRUCTURE.replace("4", "9"))
    workspace = open_workspace(studies, Settings(threads=1, protocol=tmp_path / "other.yaml"))
    assert workspace.require_protocol().indices == (9,)


def test_no_protocol_is_a_fault_only_once_it_is_needed(make_studies):
    studies = make_studies("a.png")
    workspace = open_workspace(studies, Settings(threads=1))
    with pytest.raises(ProtocolError, match=r"no protocol: give --protocol FILE.*protocol\.yaml into"):
        workspace.require_protocol()


def test_a_protocol_that_contradicts_what_people_approved_is_refused(make_studies):
    studies = make_studies("a.png")
    store = open_workspace(studies, Settings(threads=1)).store
    label_map = np.ones((16, 12, 1), np.uint8)
    write_label_map(studies / "labels" / "a.nii.gz", label_map, LPS_TO_RAS)
    info = {"label_info": [{"name": "organ", "idx": 1}], "value_to_index": {"1": 1}}
    store.submit_label("a", studies / "labels" / "a.nii.gz", tag="final", user="anna", info=info)
    (studies / "protocol.yaml").write_text(ONE_STRUCTURE)
    with pytest.raises(ProtocolError, match=r"'organ' the index 4, and in version 1 of the label of a it is 1"):
        open_workspace(studies, Settings(threads=1))
    (studies / "protocol.yaml").write_text(ONE_STRUCTURE.replace("4", "1"))
    open_workspace(studies, Settings(threads=1))


def test_a_missing_folder_or_protocol_is_named(make_studies, tmp_path):
    with pytest.raises(StoreError, match="nowhere does not exist"):
        open_workspace(tmp_path / "nowhere", Settings(threads=1))
    with pytest.raises(ProtocolError, match=r"no protocol file at .*gone\.yaml"):
        open_workspace(make_studies("a.png"), Settings(threads=1, protocol=tmp_path / "gone.yaml"))


def test_other_settings_keep_store_and_caches(make_studies, tmp_path):
    workspace = open_workspace(make_studies("a.png"), Settings(threads=1, seed=1), cache_dir=tmp_path / "cache")
    changed = workspace.with_settings(seed=5)
    assert (changed.settings.seed, workspace.settings.seed) == (5, 1)
    assert (changed.store, changed.cache_dir) == (workspace.store, tmp_path / "cache")


# Takes and gives back 36 MiB (glibc keeps up to 32 by itself), ten times and ten times again; prints how many pages the
# kernel had to map for the ten that took fewer, since a kernel that is short of memory takes pages back now and then.
COUNT_FAULTS = """
import resource, sys
import torch
if sys.argv[1] == "prepared":
    from samcorrect.lib.loop.workspace import prepare_cpu
    prepare_cpu(1)
counts = []
for number in range(40):
    if number % 10 == 0:
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    torch.ones(9 * 2**20)
print(min(later - before for before, later in zip(counts[1:], counts[2:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_what_is_freed_is_kept_for_the_next_tensor():
    def count(how: str) -> int:
        command = [sys.executable, "-c", COUNT_FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert count("prepared") < 1_000 < count("as it is")
