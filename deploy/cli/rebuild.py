"""`k9 rebuild`."""

from typing import Any

import click
import msgspec

from core.models import BuildParameters
from core.retry import RetryPolicy
from deploy.api_client import Api, ProblemError, path_of
from deploy.cli import environment
from deploy.cli.watch_build import check_published, watch
from deploy.errors import CommandError

_PAGE = 100
_POLL = RetryPolicy(first_s=0.5, max_s=0.5, jitter=0.0)
_SERVED_S = 90.0
"""How long the API may take to serve a build: it tries a version again within 60 s."""


@click.command("rebuild")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@environment.async_command
async def command(models: tuple[str, ...]) -> None:
    """Rebuilds the current builds from DynamoDB: each MODEL's, or those of all model versions.

    For index files that were lost or damaged. Each is built with the parameters of the build that
    it replaces, and stays pinned if that was. Then its files are compared with those of the
    replaced build: where no row has changed they have the same SHA-256.

    Exits 0 when the API serves all of them.
    """
    problems = []
    async with environment.open_api() as api:
        rebuilds = [_Rebuild(api, name) for name in models or await _published(api)]
        # All are requested before any is waited for: several workers share the work.
        for act in (_Rebuild.begin, _Rebuild.end):
            for rebuild in list(rebuilds):
                try:
                    await act(rebuild)
                except CommandError as error:
                    problems.append(f"{rebuild.name}: {error}")
                    rebuilds.remove(rebuild)
    if problems:
        raise CommandError("; ".join(problems))


async def _published(api: Api) -> list[str]:
    """The model versions that have a published build.

    Raises:
        CommandError: there is none.
    """
    names: list[str] = []
    more: dict[str, int | str] = {}
    while True:
        page = await api.call("GET", "/models", query={"limit": _PAGE} | more)
        names += [model["model_version"] for model in page["items"] if model["current_build"]]
        if page["next_cursor"] is None:
            break
        more = {"cursor": page["next_cursor"]}
    if not names:
        raise CommandError("no model version has a published build: `k9 build MODEL` creates one")
    return names


class _Rebuild:
    """One model version."""

    def __init__(self, api: Api, name: str) -> None:
        self.name = name
        self._api = api
        self._pinned = False
        self._before: dict[str, Any] = {}
        """The build that is replaced."""
        self._build: dict[str, Any] | None = None
        self._empty = False

    async def begin(self) -> None:
        """Requests the build, unless another one is under way.

        Raises:
            CommandError: it cannot be requested.
        """
        if (await self._model())["open_build_id"] is None:
            await self._request()

    async def end(self) -> None:
        """Waits until the API serves the build, and prints how its files compare.

        Raises:
            CommandError: it does not, or files differ that should not.
        """
        # A build that was open already may have lost files too, so another one follows it.
        while self._build is None and not self._empty:
            open_id = (await self._model())["open_build_id"]
            if open_id is not None:
                await watch(self._api, await self._api.call("GET", path_of("builds", open_id)))
            await self._request()
        if self._build is None:
            click.echo(f"{self.name}: it has no rows any more, so there is nothing to rebuild")
            return
        build = await watch(self._api, self._build)
        check_published(build)
        if self._pinned:
            path = path_of("models", self.name, "promote")
            await self._api.call("POST", path, body={"build_id": build["build_id"]})
        await self._served(build["build_id"])
        self._print_comparison(build)

    async def _model(self) -> dict[str, Any]:
        model: dict[str, Any] = await self._api.call("GET", path_of("models", self.name))
        return model

    async def _request(self) -> None:
        model = await self._model()
        if model["current_build"] is None:
            raise CommandError(
                f"it has no published build to rebuild: `k9 build {self.name}` creates the first"
            )
        self._pinned = model["pinned"]
        current = path_of("builds", model["current_build"]["build_id"])
        self._before = await self._api.call("GET", current)
        parameters = msgspec.convert(self._before["parameters"], BuildParameters).again()
        try:
            builds = path_of("models", self.name, "builds")
            self._build = await self._api.call(
                "POST", builds, body=msgspec.structs.asdict(parameters)
            )
        except ProblemError as error:
            self._empty = error.kind == "empty-model"
            # On a conflict another build was requested first, and is waited for.
            if not self._empty and error.kind != "build-conflict":
                raise

    async def _served(self, build_id: str) -> None:
        """Waits until the API serves this build, or a later one."""
        async for _ in _POLL.attempts(within_s=_SERVED_S):
            loaded = (await self._model())["loaded"]
            if loaded is not None and loaded["build_id"] >= build_id:
                return
        raise CommandError(
            f"build {build_id} is published, but the API does not serve it after {_SERVED_S:g} s: "
            "its /health/ready says why"
        )

    def _print_comparison(self, build: dict[str, Any]) -> None:
        """Prints of each file whether it is the same.

        Raises:
            CommandError: some are not, for no known reason.
        """
        # Imported here: it loads FAISS, which the other commands do not need.
        from core.index.comparison import compare  # noqa: PLC0415
        from core.index.manifest import Manifest  # noqa: PLC0415

        try:
            before, after = (
                msgspec.convert(each["manifest"], Manifest) for each in (self._before, build)
            )
        except msgspec.ValidationError as error:
            raise CommandError(f"the manifests cannot be compared: {error}") from None
        found = compare(before, after)
        click.echo(
            f"{self.name}: build {after.build_id} in place of {before.build_id}, "
            f"{after.counts.rows:,} rows, index {after.index.family}"
        )
        for file in found.files:
            word, was = ("same ", "") if file.same else ("other", f", was {file.before}")
            click.echo(f"  {word}  {file.name:<18}  {file.after}{was}")
        differing, total = len(found.differing), len(found.files)
        if not differing:
            click.echo(f"{self.name}: all {total} files have the same SHA-256 as before")
            return
        names = ", ".join(found.differing)
        if not found.reason:
            raise CommandError(f"{names} differ, although no row has changed since then")
        click.echo(f"{self.name}: {differing} of {total} files differ ({names}): {found.reason}")
