import socket
from pathlib import Path

import pytest

from deploy.errors import CommandError
from deploy.local import services
from deploy.local.files import DataDir


def test_a_taken_api_port_is_one_line() -> None:
    """Clients look for the API there, so it does not move by itself."""
    with socket.socket() as taken:
        taken.bind((services.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"port {port} is in use"):
            services.choose_ports(port, 3002, 3003)


def test_a_taken_metrics_port_moves_and_says_so() -> None:
    """Nothing depends on where it is."""
    with socket.socket() as taken, socket.socket() as free:
        taken.bind((services.HOST, 0))
        taken.listen()
        free.bind((services.HOST, 0))
        api, metrics = free.getsockname()[1], taken.getsockname()[1]
        free.close()
        ports, lines = services.choose_ports(api, metrics, 0)
    assert ports.metrics not in {api, metrics}
    assert lines[0] == f"port {metrics} is in use, so metrics listens on {ports.metrics}"


def test_port_0_takes_free_ports_for_everything() -> None:
    """As tests do, side by side with a stack that runs."""
    ports, lines = services.choose_ports(0, 3002, 3003)
    found = {ports.api, ports.metrics, ports.worker_metrics, ports.aws, ports.valkey}
    assert len(found) == 5
    assert not lines
    assert not found & {3001, 3002, 3003, services.AWS_PORT, services.VALKEY_PORT}


def test_nothing_of_the_callers_account_reaches_the_services() -> None:
    """Profiles, keys, addresses and table names stay outside; the rest, limits too, comes in."""
    environ = {
        "AWS_PROFILE": "production",
        "AWS_ENDPOINT_URL_S3": "http://elsewhere",
        "DYNAMODB_USERS_TABLE": "theirs",
        "K9_ENVIRONMENT": "production",
        "REDIS_URL": "redis://elsewhere",
        "K9_BODY_BYTES_MAX": "1000",
        "NO_PROXY": "example.org",
    }
    assert services.base_environ(environ) == {
        "K9_BODY_BYTES_MAX": "1000",
        "NO_PROXY": "example.org,127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


async def test_a_service_that_ends_while_it_is_waited_for_says_why(tmp_path: Path) -> None:
    """The last line of its log, and where the rest is."""
    data = DataDir(tmp_path)
    data.create()
    ports, _ = services.choose_ports(0, 0, 0)
    (tmp_path / "failing.py").write_text("raise SystemExit('no settings today')")
    environ = {"PYTHONPATH": str(tmp_path)}
    process = services.python_process(data, "api", "failing", environ)
    await process.start()
    with pytest.raises(CommandError, match="api does not start: no settings today"):
        await services.wait_until_ready(process, ports, data.secrets())
