import socket

from clients.cli import main
from service.command import _listen


def test_answers_leave_before_the_caller_has_acknowledged_a_piece() -> None:
    with _listen("127.0.0.1", 0, 30.0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_cores_of_another_host_without_an_address_are_refused_in_a_line(capsys) -> None:
    assert main(["serve", "--data-parallel=2", "--data-parallel-local=1"]) == 2
    said = "coevo serve: --data-parallel-address: set it to the address of core 0's host, on all hosts\n"
    assert capsys.readouterr().err == said
