"""`k9 deploy`: an environment in an AWS account; `deploy/deploy.sh` runs it."""

import os
from typing import TYPE_CHECKING, Any

import click
import msgspec

from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError

if TYPE_CHECKING:  # loaded when it is called, as in `environment`
    from deploy.aws.deployment_options import Deployment, Network

_ZONES_MIN = 2
_CONTEXT = {"max_content_width": 100}


@click.command("deploy", context_settings=_CONTEXT)
@click.option("--environment", "name", required=True, help="Its name: dev, staging, prod.")
@click.option("--user-pool-id", help="Its Cognito user pool, which no other environment may have.")
@click.option("--certificate-arn", help="ACM certificate of the load balancer; dev may go without.")
@click.option("--domain", help="The name in the certificate that clients use.")
@click.option("--client-range", help="Addresses that may connect. dev: this machine's, else all.")
@click.option("--vpc-id", help="An existing VPC to use. Without it one is made.")
@click.option("--public-subnets", help="Of that VPC, for the load balancer: two, with a comma.")
@click.option("--private-subnets", help="Of that VPC, for tasks and Valkey: two, with a comma.")
@click.option("--image", help="An image in a registry, in place of building one.")
@click.option("--repository", help="Where to push the image, other than the stack's own in ECR.")
@click.option("--build-secret", multiple=True, help="Passed to docker build as --secret.")
@click.option("--build-arg", multiple=True, help="Passed to docker build.")
@click.option(
    "--replica-region",
    "replica_regions",
    multiple=True,
    help="A region for a replica of each table, for recovery; given again for each.",
)
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any parameter of the templates in deploy/cloudformation, as ApiSize=large.",
)
@click.option("--dry-run", is_flag=True, help="Shows what would change, and changes nothing.")
@click.option(
    "--smoke-test/--no-smoke-test", default=True, help="Whether the API is asked at the end."
)
@click.option("--alarms/--no-alarms", default=True, help="Whether alarms and dashboard are made.")
@click.option(
    "--backups",
    is_flag=True,
    help="Makes a bucket of backups, and one each night; later runs keep that.",
)
@click.option("--delete", is_flag=True, help="Deletes the service. Tables and bucket stay.")
@click.option(
    "--delete-data",
    metavar="ENVIRONMENT",
    help="With --delete: its tables, their backups and its bucket too. Name the environment again.",
)
@environment.async_command
async def command(  # noqa: PLR0913 - an option each
    *,
    name: str,
    user_pool_id: str | None,
    vpc_id: str | None,
    public_subnets: str | None,
    private_subnets: str | None,
    build_secret: tuple[str, ...],
    build_arg: tuple[str, ...],
    parameters: tuple[str, ...],
    dry_run: bool,
    delete: bool,
    delete_data: str | None,
    **fields: Any,
) -> None:
    """Deploys an environment into the AWS account of your credentials (AWS_PROFILE, AWS_REGION).

    Creates or updates network, image, tables, service and alarms, shows each change before it makes
    it, and rolls back what fails. Options that are not given keep the values of the last run.
    """
    # `fields` are the options that a `Deployment` has by the same name.
    settings = _settings(name)
    if delete or delete_data:
        if dry_run or not delete or delete_data not in {None, name}:
            raise click.UsageError(
                f"--delete-data goes with --delete and names the environment, {name}; neither goes "
                "with --dry-run"
            )
        await _delete(settings, user_pool_id, data=delete_data is not None)
        return
    if user_pool_id is None:
        raise click.UsageError("Missing option '--user-pool-id'.")
    from deploy.aws.deployment_options import Deployment  # noqa: PLC0415 - see `environment`

    deployment = Deployment(
        pool_id=user_pool_id,
        network=_network(vpc_id, public_subnets, private_subnets),
        build_options=(
            *(f"--secret={each}" for each in build_secret),
            *(f"--build-arg={each}" for each in build_arg),
        ),
        parameters=dict(_pair(each) for each in parameters),
        **fields,
    )
    await _deploy(settings, deployment, dry_run=dry_run)


def _settings(name: str) -> Settings:
    """The command's settings, for the environment that is named on the command line.

    Raises:
        CommandError: K9_ENVIRONMENT names another one.
    """
    other = os.environ.get("K9_ENVIRONMENT")
    if other not in {None, "", name}:
        raise CommandError(f"K9_ENVIRONMENT is {other!r}, and --environment {name!r}: unset it")
    os.environ["K9_ENVIRONMENT"] = name
    settings, _ = environment.enter()
    # Calls of the control plane are few; an account may be far away.
    aws = msgspec.structs.replace(settings.aws, connect_timeout_s=5.0)
    return msgspec.structs.replace(settings, environment=name, aws=aws)


def _network(vpc_id: str | None, public: str | None, private: str | None) -> "Network | None":
    if vpc_id is None and public is None and private is None:
        return None
    if vpc_id is None or public is None or private is None:
        raise click.UsageError("--vpc-id, --public-subnets and --private-subnets go together")
    from deploy.aws.deployment_options import Network  # noqa: PLC0415 - see `environment`

    return Network(vpc_id, _subnets(public), _subnets(private))


def _subnets(text: str) -> tuple[str, ...]:
    subnets = tuple(part.strip() for part in text.split(",") if part.strip())
    if len(subnets) < _ZONES_MIN:
        raise click.UsageError(f"two subnets, of two zones, are needed: {text!r}")
    return subnets


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise click.UsageError(f"--parameter takes NAME=VALUE, not {text!r}")
    return name, value


async def _deploy(settings: Settings, deployment: "Deployment", *, dry_run: bool) -> None:
    from deploy.aws.clients import open_client  # noqa: PLC0415 - see `environment`
    from deploy.aws.deployment import Deployer  # noqa: PLC0415

    async with open_client("cloudformation", settings) as client:
        deployer = Deployer(settings, client, environment.say)
        await deployer.check(deployment)
        if dry_run:
            await deployer.dry_run(deployment)
            environment.say("nothing was changed")
            return
        url = await deployer.deploy(deployment)
    click.echo(url)


async def _delete(settings: Settings, pool_id: str | None, *, data: bool) -> None:
    from deploy.aws.clients import open_client  # noqa: PLC0415 - see `environment`
    from deploy.aws.deletion import check_deletable, delete_data  # noqa: PLC0415
    from deploy.aws.deployment import Deployer  # noqa: PLC0415

    if data:
        await check_deletable(settings)
    async with open_client("cloudformation", settings) as client:
        await Deployer(settings, client, environment.say).delete(pool_id)
    if data:
        await delete_data(settings, environment.say)
    else:
        environment.say(
            "tables and bucket stay: --delete-data with the environment's name deletes them too"
        )
