"""The queue's messages can run no code, and a lost Redis is no error of the request's."""

import pickle

import msgspec
import pytest

from core import queue
from core.queue import BuildJob, open_queue, redis_settings
from core.settings import Settings
from tests.emulators import free_port


def test_a_message_comes_back() -> None:
    """A payload Struct arrives as plain data that converts to the Struct again."""
    data = queue.serialize({"a": (BuildJob("b1", 3),), "f": "run_build"})
    assert msgspec.convert(queue.deserialize(data)["a"][0], BuildJob) == BuildJob("b1", 3)


def test_a_payload_of_a_newer_process_is_read() -> None:
    """A field that this version does not know is passed over."""
    newer = {"build_id": "b1", "fence": 1, "priority": "high"}
    assert msgspec.convert(newer, BuildJob) == BuildJob("b1", 1)


def test_a_pickle_is_refused() -> None:
    """What someone wrote into Redis as a pickle is not loaded."""
    with pytest.raises(msgspec.DecodeError):
        queue.deserialize(pickle.dumps({"f": "run_build"}))


def test_tls_checks_host_names() -> None:
    """With rediss:// the server's certificate must be for its name."""
    assert redis_settings(Settings(redis_url="rediss://cache.example")).ssl_check_hostname
    assert not redis_settings(Settings(redis_url="redis://cache.example")).ssl_check_hostname


async def test_without_redis_enqueueing_says_no() -> None:
    """A hint that cannot be left is reported as such and raises nothing."""
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", redis_timeout_s=0.5)
    async with open_queue(settings) as build_queue:
        assert not await build_queue.enqueue("b1", 0)
        assert not await build_queue.ping()
