import socket

from service.command import _listen


def test_answers_leave_before_the_caller_has_acknowledged_a_piece() -> None:
    with _listen("127.0.0.1", 0, 30.0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
