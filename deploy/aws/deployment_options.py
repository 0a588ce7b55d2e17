"""What a deployment is given on the command line: checked before anything is asked of AWS."""

import re
from collections.abc import Mapping
from typing import Final

import aiohttp
import msgspec

from deploy.aws import stacks
from deploy.errors import CommandError

STACKS: Final = ("base", "data", "capacity", "service", "alarms", "backup")
"""Of an environment, in the order in which they are made."""
_OWN_ADDRESS: Final = "https://checkip.amazonaws.com"
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""What ECR and ElastiCache take in a name; the tables alone would take more."""
_NAME_CHARACTERS_MAX: Final = 29
"""A load balancer's name has 32, of which `k9-` takes three."""
_SET_BY: Final = {
    "Environment": "--environment",
    "UserPoolId": "--user-pool-id",
    "Image": "--image",
    "CreateNetwork": "--vpc-id",
    "VpcId": "--vpc-id",
}
"""Parameters whose options are checked, and tell more than the parameter."""


class Network(msgspec.Struct, frozen=True):
    """An existing VPC to deploy into."""

    vpc_id: str
    public_subnets: tuple[str, ...]
    """Of the load balancer."""
    private_subnets: tuple[str, ...]
    """Of Valkey and the tasks, with a way out to AWS."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be deployed."""

    pool_id: str
    certificate_arn: str | None = None
    domain: str | None = None
    client_range: str | None = None
    network: Network | None = None
    image: str | None = None
    """An image that is in a registry; None builds and pushes one."""
    repository: str | None = None
    """Where to push it, other than the stack's own repository of ECR."""
    build_options: tuple[str, ...] = ()
    replica_regions: tuple[str, ...] = ()
    """Regions that the tables are to have replicas in; those that they have stay."""
    parameters: Mapping[str, str] = {}
    """Of any of the templates, by name."""
    smoke_test: bool = True
    smoke_wait_s: float = 300.0
    """How long the API may take to answer as it should."""
    alarms: bool = True
    backups: bool = False
    """Whether backups are made on a schedule; once made they stay."""


def check_name(environment: str) -> None:
    """Checks that an environment's name can stand in the names of all that is made.

    Raises:
        CommandError: it cannot.
    """
    if len(environment) > _NAME_CHARACTERS_MAX or not _NAME.fullmatch(environment):
        raise CommandError(
            f"--environment {environment!r}: up to {_NAME_CHARACTERS_MAX} of a-z and 0-9, with "
            "single hyphens between them, can stand in the names of load balancer and Valkey"
        )


def check_parameters(parameters: Mapping[str, str]) -> None:
    """Checks that a template has each parameter, and that none has an option of its own.

    Raises:
        CommandError: one is unknown, or is to be given by an option.
    """
    known = set[str]().union(*(template_parameters(name) for name in STACKS))
    for name in parameters:
        if name in _SET_BY:
            raise CommandError(f"--parameter {name}=…: give {_SET_BY[name]} in place of it")
        if name not in known:
            there = sorted(known - _SET_BY.keys())
            raise CommandError(f"no template has the parameter {name}: there is {there}")


def template_parameters(stack: str) -> frozenset[str]:
    """The names of the parameters of a stack's template."""
    return stacks.parameter_names((stacks.TEMPLATES / f"{stack}.yaml").read_text(encoding="utf-8"))


async def own_address() -> str:
    """The range of this machine's public address alone, as AWS sees it.

    Raises:
        CommandError: AWS's service for it does not answer.
    """
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(_OWN_ADDRESS) as reply,
        ):
            reply.raise_for_status()
            return f"{(await reply.text()).strip()}/32"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CommandError(
            f"{_OWN_ADDRESS} does not tell this machine's address ({type(error).__name__}): give "
            "--client-range, the range of addresses that may connect, as in 203.0.113.7/32"
        ) from error
