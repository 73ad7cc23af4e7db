"""Host fault: every scoring method is run again at start-up, after each next sample and after each training.

Ours train networks: a server would never be idle (`monailabel/interfaces/app.py`: `_auto_update_scoring` is on).
"""

from typing import Any


def disable_auto_scoring(app: Any) -> None:
    """Let scoring methods run only when they are asked for.

    Args:
        app: The MONAILabelApp, after its constructor.
    """
    app._auto_update_scoring = False
