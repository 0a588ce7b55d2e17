"""`python -m worker` as a process: what it shows of itself."""

from pathlib import Path

import httpx
import msgspec

from core.settings import Settings
from tests.emulators import free_port
from tests.worker.processes import running


async def test_a_worker_shows_its_metrics(stack_settings: Settings, tmp_path: Path) -> None:
    """On a port of its own: what became of builds, and how late its event loop is."""
    building = msgspec.structs.replace(stack_settings.building, work_dir=tmp_path)
    settings = msgspec.structs.replace(stack_settings, building=building)
    port = free_port()
    async with running(settings, K9_WORKER_METRICS_PORT=str(port)), httpx.AsyncClient() as client:
        metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert "k9_builds_reconciled_total" in metrics
    assert "k9_event_loop_delay_longest_seconds" in metrics
