"""A server on loopback that passes requests on to another one, each after a pause.

python benchmarks/delayed.py PORT URI SECONDS
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_LEFT = ("connection", "content-length", "host", "transfer-encoding")  # headers of one hop


def handler(uri: str, seconds: float) -> type[BaseHTTPRequestHandler]:
    """Return what answers as the server at ``uri`` does, ``seconds`` later."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on(None)

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        do_PUT = do_PATCH = do_POST

        def _pass_on(self, body: bytes | None) -> None:
            time.sleep(seconds)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _LEFT}
            asked = urllib.request.Request(uri + self.path, body, headers, method=self.command)
            try:
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    code, data, kind = answer.status, answer.read(), answer.headers["Content-Type"]
            except urllib.error.HTTPError as error:
                code, data, kind = error.code, error.read(), error.headers["Content-Type"]
            self.send_response(code)
            self.send_header("Content-Type", kind or "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def main() -> None:
    """Serve until the process is ended."""
    port, uri, seconds = sys.argv[1:]
    ThreadingHTTPServer(("127.0.0.1", int(port)), handler(uri, float(seconds))).serve_forever()


if __name__ == "__main__":
    main()
