"""Host fault: any web page may call the server as its user (`monailabel/app.py`: origins `*` with credentials)."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware


def forbid_other_origins(app: FastAPI, allowed_origins: list[str]) -> None:
    """Drop the host's cross-origin rule unless origins are named in MONAI_LABEL_CORS_ORIGINS.

    The viewers that the server ships (OHIF) come from its own origin, and Slicer is no browser: neither needs the rule.

    Args:
        app: The host's application; its middleware stack must be rebuilt afterwards.
        allowed_origins: Those that the administrator named; where there is one, the host's rule is right and stays.
    """
    if not allowed_origins:
        app.user_middleware = [entry for entry in app.user_middleware if entry.cls is not CORSMiddleware]
