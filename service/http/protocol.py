"""uvicorn's protocol, but for a head that does not end: httptools takes one of any length into memory."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ANSWER = b"HTTP/1.1 431 Request Header Fields Too Large\r\nx-problem-type: too-large\r\nconnection: close\r\n"


def bounded(limit: int) -> type[HttpToolsProtocol]:
    """The protocol with heads of at most `limit` bytes. One that arrives whole is refused by `auth.HeadLimit`."""

    class BoundedProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._head_bytes = 0
            self._in_head = False

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head_bytes = True, 0

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._in_head = False

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():  # what was on its way when the connection was given up
                return
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > limit:
                    self.transport.write(_ANSWER + b"content-length: 0\r\n\r\n")
                    self.transport.close()

    return BoundedProtocol
