"""Host fault: a request may be of any size, and fills the disk (an upload) or the memory (JSON) before anyone looks."""

from fastapi import FastAPI, HTTPException
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Params are a few hundred bytes; prompts by the thousand and lists of ids fit.
MAX_JSON_BYTES = 2**20


class BodyLimit:
    """Answers 413 as soon as a body claims to be, or is, over its limit: one for uploads, one for everything else."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int):
        """Limit what reaches `app`."""
        self.app = app
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, its body counted while it streams in."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Only PUT keeps files; where JSON is expected, a body of parts would be read into the memory as well.
        is_upload = scope["method"] == "PUT" and headers.get("content-type", "").lower().startswith("multipart/")
        limit = self.max_upload_bytes if is_upload else MAX_JSON_BYTES
        n_bytes = 0

        async def receive_counted() -> Message:
            nonlocal n_bytes
            # The server has refused a length that is no number, and a body of another length than it claims.
            _require(int(headers.get("content-length", 0)), limit, is_upload)
            message = await receive()
            n_bytes += len(message.get("body", b""))
            _require(n_bytes, limit, is_upload)
            return message

        await self.app(scope, receive_counted, send)


def limit_bodies(app: FastAPI, max_upload_bytes: int) -> None:
    """Limit uploads to `max_upload_bytes` and other bodies to MAX_JSON_BYTES.

    Args:
        app: The host's application; its middleware stack must be rebuilt afterwards.
        max_upload_bytes: For bodies of several parts.
    """
    app.user_middleware.append(Middleware(BodyLimit, max_upload_bytes=max_upload_bytes))


def _require(n_bytes: int, limit: int, is_upload: bool) -> None:
    if n_bytes > limit:
        kind, remedy = ("an upload", "; the setting max_upload_mb raises it") if is_upload else ("a body of params", "")
        raise HTTPException(413, f"{kind} has at most {limit} bytes; this one has {n_bytes} or more{remedy}")
