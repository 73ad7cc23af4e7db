"""Host fault: background tasks stay SUBMITTED for ever where PYTHONPATH is not set.

`monailabel/utils/async_tasks/utils.py` reads `os.environ["PYTHONPATH"]` in a worker thread whose errors nobody sees.
The host's own start command happens to set the variable.
"""

import os


def ensure_pythonpath() -> None:
    """Set PYTHONPATH to the empty string where it is not set, so that background tasks start."""
    os.environ.setdefault("PYTHONPATH", "")
