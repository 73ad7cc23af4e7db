"""Host fault: any web page may call the server as its user (`monailabel/app.py`: origins `*` with credentials).

Without the host's rule a browser hides the replies from other pages, but still sends the requests that need no leave:
a form of a strange page could start a training.
"""

from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class SameOrigin:
    """Answers 403 to what a page of another origin makes a browser send, unless it only reads."""

    def __init__(self, app: ASGIApp, allowed_origins: list[str]):
        """Guard `app`."""
        self.app = app
        self.allowed_origins = [origin.rstrip("/") for origin in allowed_origins]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS or self._is_same_origin(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        detail = (
            "a page of another origin may not change anything here; an administrator can name its origin in "
            "MONAI_LABEL_CORS_ORIGINS"
        )
        # What the application tells of a refusal, it is told of this one too; no route has been looked for yet.
        tell = getattr(scope["app"].state, "on_refusal", None)
        client = scope["client"][0] if scope.get("client") else "unknown"
        told = tell and BackgroundTask(tell, scope["method"], "unknown route", 403, "Forbidden", client, None)
        reply = JSONResponse({"error": "Forbidden", "detail": detail}, 403, background=told)
        await reply(scope, receive, send)

    def _is_same_origin(self, headers: Headers) -> bool:
        # Programs send neither header; a browser that is too old for the first sends the second.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if origin in self.allowed_origins or (site is None and origin is None):
            return True
        return site in ("same-origin", "none") if site is not None else _netloc(origin) == headers.get("host")


def forbid_other_origins(app: FastAPI, allowed_origins: list[str]) -> None:
    """Close the server to pages of other origins than those that are named in MONAI_LABEL_CORS_ORIGINS.

    The viewers that the server ships (OHIF) come from its own origin, and Slicer is no browser: neither needs the rule.

    Args:
        app: The host's application; its middleware stack must be rebuilt afterwards.
        allowed_origins: Those that the administrator named; where there is one, the host's rule is right and stays.
    """
    if not allowed_origins:
        app.user_middleware = [entry for entry in app.user_middleware if entry.cls is not CORSMiddleware]
    app.user_middleware.append(Middleware(SameOrigin, allowed_origins=allowed_origins))


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
