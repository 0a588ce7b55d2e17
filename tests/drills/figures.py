"""The figures that alerts read, as processes of a drill's stack export them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from deploy.api_client import Api, open_api
from deploy.local.files import OPERATOR
from tests.drills.stack import DrillFailed, Stack, say

API, WORKER = "K9_METRICS_PORT", "K9_WORKER_METRICS_PORT"
_SEEN_S = 90.0

Figures = dict[str, float]
"""Sums of a process's samples, by name, by `name{label=value}` for each label, and by all labels
together, in alphabetical order."""


@asynccontextmanager
async def operator_api(stack: Stack) -> AsyncIterator[Api]:
    """The API, as an operator."""
    token = await stack.running.fetch_token(stack.settings, OPERATOR, operator=True)
    async with open_api(stack.running.environ["K9_URL"], token) as api:
        yield api


async def read_figures(stack: Stack, port: str) -> Figures | None:
    """What a process exports now; None if it does not answer."""
    url = f"http://127.0.0.1:{stack.running.environ[port]}/metrics"
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as reply:
            text = await reply.text()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
    figures: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            pairs = sorted(f"{label}={value}" for label, value in sample.labels.items())
            labels = {*pairs, ",".join(pairs)} - {""}
            for name in (sample.name, *(f"{sample.name}{{{each}}}" for each in labels)):
                figures[name] = figures.get(name, 0.0) + sample.value
    return figures


async def until(
    stack: Stack, alert: str, port: str, seen: Callable[[Figures | None], bool]
) -> None:
    """Waits until a process's figures are such, and prints how long it took.

    Raises:
        DrillFailed: they are not in time.
    """
    began = perf_counter()
    while not seen(await read_figures(stack, port)):
        if perf_counter() - began > _SEEN_S:
            raise DrillFailed(f"{alert}: not seen in {_SEEN_S:g} s")
        await asyncio.sleep(0.2)
    say(f"{alert}: after {perf_counter() - began:.1f} s")


def has(name: str, least: float = 1.0) -> Callable[[Figures | None], bool]:
    """Whether a figure is at least so much."""
    return lambda figures: figures is not None and figures.get(name, 0.0) >= least


def lacks(name: str) -> Callable[[Figures | None], bool]:
    """Whether a figure is 0, or not there."""
    return lambda figures: figures is not None and figures.get(name, 0.0) == 0
