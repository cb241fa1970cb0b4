"""The contract with cheroot: what the server uses beyond its documentation is there, and still so."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from cheroot import server, wsgi
from cheroot.workers import threadpool


def test_it_is_the_major_version_that_the_server_was_written_for() -> None:
    assert version("cheroot").startswith("11.")


def test_a_worker_ends_at_the_stop_sign_and_hands_each_connection_back_in_one_of_two_ways() -> None:
    source = inspect.getsource(threadpool.WorkerThread._process_connections_until_interrupted)  # type: ignore[attr-defined]
    assert "conn = self.server.requests.get()" in source
    assert "if conn is _SHUTDOWNREQUEST:\n                return" in source
    assert "keep_conn_open = conn.communicate()" in source
    assert "self.server.put_conn(conn)" in source
    assert "conn.close()" in source
    assert hasattr(threadpool, "_SHUTDOWNREQUEST")


def test_a_connection_reads_one_request_from_rfile_and_answers_into_wfile() -> None:
    communicate = inspect.getsource(server.HTTPConnection.communicate)
    assert "req = self.RequestHandlerClass(self.server, self)" in communicate
    assert "self.socket" not in communicate
    request = inspect.getsource(server.HTTPRequest)
    assert "self.conn.rfile" in request
    assert "self.conn.wfile.write" in request
    assert "self.conn.socket" not in request


def test_every_error_answer_of_the_parser_goes_through_simple_response() -> None:
    assert list(inspect.signature(server.HTTPRequest.simple_response).parameters) == ["self", "status", "msg"]
    assert "close_connection" in vars(server.HTTPRequest)


def test_every_header_of_an_answer_is_written_from_outheaders_by_send_headers() -> None:
    source = inspect.getsource(server.HTTPRequest.send_headers)
    assert "for k, v in self.outheaders:" in source
    assert "self.conn.wfile.write(EMPTY.join(buf))" in source


def test_the_gateway_takes_its_environ_from_get_environ() -> None:
    assert "self.env = self.get_environ()" in inspect.getsource(wsgi.Gateway.__init__)
    assert "self.server.gateway(self).respond()" in inspect.getsource(server.HTTPRequest.respond)


def test_the_server_s_register_of_statistics_is_where_it_is_emptied() -> None:
    assert "logging.statistics['Cheroot HTTPServer %d' % id(self)]" in inspect.getsource(server.HTTPServer)
