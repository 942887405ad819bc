"""A service's address that fails a few times: what a full disk or a bug behind it looks like to a worker."""

import http.client
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def failing(url: str, method: str, part: str, status: int, times: int = 1) -> Generator[str]:
    """Passes everything on to `url`, but answers the first requests of this method whose path has this part itself."""
    left = threading.Semaphore(times)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.command == method and part in self.path and left.acquire(blocking=False):
                problem = {"type": "disk-full", "title": "", "status": status, "detail": "no room for it"}
                self.reply(status, "application/problem+json", json.dumps(problem).encode())
                return
            upstream = http.client.HTTPConnection(urlsplit(url).netloc)
            upstream.request(self.command, self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            self.reply(reply.status, reply.headers.get("content-type", ""), reply.read())
            upstream.close()

        def reply(self, code: int, kind: str, content: bytes) -> None:
            self.send_response(code)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

        do_GET = do_PUT = do_POST = do_DELETE = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
