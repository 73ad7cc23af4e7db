from types import SimpleNamespace

import numpy as np
import pytest

from samcorrect.lib.infers import sam
from samcorrect.lib.infers.sam import SamPromptTask
from samcorrect.lib.store.volumes import Volume


@pytest.mark.parametrize("names", [("organ", "tumour"), ("tumour", "organ")])
def test_of_several_structures_the_smaller_one_has_the_voxels_of_two(monkeypatch, names):
    masks = dict(zip(("organ", "tumour"), np.zeros((2, 8, 8, 2), bool), strict=True))
    masks["organ"][1:7, 1:7], masks["tumour"][3:5, 2:5, 0] = True, True
    monkeypatch.setattr(sam, "segment_prompts", lambda _, __, prompts: masks[prompts.label])
    monkeypatch.setattr(sam, "warm_beside", lambda *_: None)
    task = SamPromptTask(SimpleNamespace(protocol=None))
    request = {"structures": [{"label": name, "foreground": [[3, 3, 0]]} for name in names]}

    made = task.segment(SimpleNamespace(image_path=None), Volume(np.zeros((8, 8, 2)), np.eye(4), 3), request)

    values = {name: value for value, name in made.names.items()}
    assert list(values) == list(names)
    assert np.array_equal(made.label_map == values["tumour"], masks["tumour"])
    assert np.array_equal(made.label_map == values["organ"], masks["organ"] & ~masks["tumour"])
