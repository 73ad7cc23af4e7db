"""A weights file behind HTTP, with the faults of real servers."""

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WeightsServer(ThreadingHTTPServer):
    """A file behind HTTP on 127.0.0.1, under every path; the ranges that were asked for, one entry a request.

    It gives ranges or not, and hangs up after `cut_after` bytes of a reply.
    """

    def __init__(self, content: bytes, *, has_ranges: bool = True, cut_after: int | None = None):
        super().__init__(("127.0.0.1", 0), _WeightsHandler)
        self.content, self.has_ranges, self.cut_after = content, has_ranges, cut_after
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pth"


class _WeightsHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.has_ranges else 0
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])

    def log_message(self, *_arguments: object) -> None:
        pass
