"""Whether the next image is drawn at random, and that core stands on its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import samcorrect.lib.core
from samcorrect.lib.core.selection import draw_is_audit

CORE_MODULES = sorted(path.stem for path in Path(samcorrect.lib.core.__file__).parent.glob("*.py"))


def test_about_the_audit_share_of_the_draws_is_at_random(rng):
    draws = [draw_is_audit(0.2, rng) for _ in range(5000)]

    # The standard error of 5000 draws is 0.6%.
    assert 0.18 < np.mean(draws) < 0.22


def test_no_share_never_and_the_whole_share_always(rng):
    assert not any(draw_is_audit(0.0, rng) for _ in range(1000))
    assert all(draw_is_audit(1.0, rng) for _ in range(1000))


def test_the_generator_decides():
    one, same, other = ([draw_is_audit(0.5, rng) for _ in range(64)] for rng in map(np.random.default_rng, (1, 1, 2)))

    assert one == same
    assert one != other


def test_core_runs_without_monailabel():
    names = [f"samcorrect.lib.core.{name}" for name in CORE_MODULES if name != "__init__"]
    code = (
        "import importlib, sys; sys.modules['monailabel'] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(len([name for name in sys.modules if name.startswith('samcorrect.lib.core.')]))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(names) >= 9
