"""K9's image: built by Docker, pushed to a registry under a tag made from its digest.

The same sources give the same image while Docker has its layers, so that a second run pushes and
changes nothing.
"""

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from botocore.exceptions import ClientError

from core.settings import Settings
from deploy.aws.clients import code_of, open_client
from deploy.callbacks import MessageCallback
from deploy.errors import CommandError

ROOT: Final = Path(__file__).parent.parent.parent
DOCKERFILE: Final = Path("deploy/container/Dockerfile")
_PLATFORM: Final = "linux/amd64"
"""Of the tasks, whatever this machine is."""
_TAG_CHARACTERS: Final = 24
_LINES_SHOWN: Final = 15


async def check_docker() -> None:
    """Checks that images can be built here.

    Raises:
        CommandError: there is no docker, its engine does not answer, or the sources are missing.
    """
    if shutil.which("docker") is None:
        raise CommandError("docker is not installed: install it, or give --image of one pushed")
    if not (ROOT / DOCKERFILE).is_file():
        raise CommandError(f"{DOCKERFILE} is not here: run this from K9's sources, or give --image")
    try:
        await _docker(["version", "--format", "{{.Server.Version}}"])
    except CommandError as error:
        raise CommandError(
            f"docker's engine does not answer: start it, or give --image of one pushed ({error})"
        ) from error


async def build_image(message: MessageCallback, *, build_options: Sequence[str] = ()) -> str:
    """Builds the image; returns its id, `sha256:…`.

    `build_options` go to `docker build`: a package mirror as a secret, a base image as an argument.
    """
    message("building the image")
    with tempfile.TemporaryDirectory() as directory:
        id_file = Path(directory, "id")
        await _docker(
            [
                "build",
                f"--platform={_PLATFORM}",
                f"--iidfile={id_file}",
                f"--file={ROOT / DOCKERFILE}",
                *build_options,
                str(ROOT),
            ]
        )
        return (await asyncio.to_thread(id_file.read_text, encoding="utf-8")).strip()


async def push_image(
    settings: Settings, image_id: str, repository: str, message: MessageCallback, *, is_ecr: bool
) -> str:
    """Pushes an image unless it is in the repository; returns its address there.

    Args:
        settings: Where ECR is.
        image_id: As `build_image` returned it.
        repository: The repository's address, without a tag.
        message: Called with a line per step.
        is_ecr: Whether the repository is ECR's, which needs a login and keeps tags as they are;
            another registry needs what `docker login` has stored.
    """
    tag = image_id.removeprefix("sha256:")[:_TAG_CHARACTERS]
    address = f"{repository}:{tag}"
    if is_ecr:
        if await _is_pushed(settings, repository, tag):
            message(f"{address}: pushed already")
            return address
        await _log_in(settings, repository)
    message(f"pushing {address}")
    await _docker(["tag", image_id, address])
    await _docker(["push", address])
    return address


async def _is_pushed(settings: Settings, repository: str, tag: str) -> bool:
    name = repository.partition("/")[2]
    async with open_client("ecr", settings) as client:
        try:
            reply = await client.describe_images(repositoryName=name, imageIds=[{"imageTag": tag}])
        except ClientError as error:
            if code_of(error) == "ImageNotFoundException":
                return False
            raise
    return bool(reply["imageDetails"])


async def _log_in(settings: Settings, repository: str) -> None:
    async with open_client("ecr", settings) as client:
        reply = await client.get_authorization_token()
    token = base64.b64decode(reply["authorizationData"][0]["authorizationToken"]).decode()
    user, _, password = token.partition(":")
    # On standard input: a process's arguments are for everybody on this machine to see.
    host = repository.partition("/")[0]
    await _docker(["login", "--username", user, "--password-stdin", host], password.encode())


async def _docker(arguments: list[str], standard_input: bytes = b"") -> None:
    """Raises: CommandError: docker failed, with the last lines that it printed."""
    process = await asyncio.create_subprocess_exec(
        "docker",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"DOCKER_BUILDKIT": "1"},  # older engines have build secrets only with it
    )
    try:
        output, _ = await process.communicate(standard_input)
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines()[-_LINES_SHOWN:]
        raise CommandError(f"docker {arguments[0]} failed: {' | '.join(lines)}")
