"""What answers without the builds table is held to it as soon as it can be asked."""

from pathlib import Path

import msgspec

from core.errors import Unavailable
from tests.unit.api.serving.rig import Rig, until
from tests.unit.api.serving.test_updater import ONE, TWO, restarted
from tests.unit.api.serving.versions import damaged, model_of
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_what_answered_without_dynamodb_is_dropped_if_the_table_has_another(
    tmp_path: Path,
) -> None:
    """Once it can be asked; the version before, which it does know, answers instead."""
    rig = await restarted(tmp_path, {"b-1": ONE, "b-2": TWO})
    rig.versions.cached_builds |= {"b-1", "b-2"}
    async with rig.updating():
        await until(lambda: rig.build_id == "b-2")
        for build_id, true in rig.versions.manifests.items():
            told = damaged(true) if build_id == "b-2" else true
            rig.builds.manifests[build_id] = msgspec.to_builtins(told)
        rig.models.models, rig.models.failure = [model_of("b-2")], None
        await until(lambda: rig.build_id == "b-1")
        await until(lambda: "builds table" in rig.registry.troubles.get("m", ""))
        rig.builds.manifests["b-2"] = msgspec.to_builtins(rig.versions.manifests["b-2"])
        await until(lambda: rig.build_id == "b-2")


@in_virtual_time
async def test_a_start_without_the_builds_table_serves_what_the_cache_has(tmp_path: Path) -> None:
    """The list of model versions can be read; what is on this disk answers, and is verified."""
    rig = Rig(tmp_path)
    for build_id, ids in (("b-1", ONE), ("b-2", TWO)):
        rig.versions.add(build_id, ids)
    rig.versions.cached_builds |= {"b-1", "b-2"}
    rig.builds.failure = Unavailable("throttled")
    rig.models.models = [model_of("b-2")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-2")
        told = damaged(rig.versions.manifests["b-2"])
        rig.builds.manifests["b-2"] = msgspec.to_builtins(told)
        rig.builds.failure = None
        await until(lambda: rig.build_id == "b-1")
        assert "b-2" in rig.registry.troubles["m"]
