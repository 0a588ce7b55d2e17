"""A deployment against the embedded AWS: created, changed, rolled back, deleted.

`deploy_journey.py` does the same by `deploy/deploy.sh` (`make deploy-test`).

The emulator lacks some types. What makes them is turned off here by parameters that are the
templates' own: NAT gateways, the firewall, scaling. It also lacks alarms on sums over operations,
so that `test_alarms_and_dashboard` creates the rest of that stack alone. What is left out here is
only linted: by cfn-lint in `make check`, by checkov in `make deploy-check`.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import aioboto3
import pytest
import yaml
from msgspec.structs import replace

from core.dynamo import tables
from core.settings import Settings
from deploy.aws import stacks
from deploy.aws.clients import open_client
from deploy.aws.data_stack import create_tables, stack_spec
from deploy.aws.deletion import check_deletable, delete_data
from deploy.aws.deployment import Deployer
from deploy.aws.deployment_options import Deployment
from deploy.aws.tables import describe_tables
from deploy.cli.main import run
from deploy.errors import CommandError
from tests.emulators import settings_for
from tests.templates import read_template

_SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "deploy.sh"
_LEFT_OUT = ("NatGateways=0", "RequestsPerMinute=0", "Scaling=off")
_OPTIONS = [option for each in _LEFT_OUT for option in ("--parameter", each)]
CERTIFICATE = "arn:aws:acm:us-east-1:000000000000:certificate/11111111-2222-3333-4444-555555555555"


class Account:
    """The embedded AWS as an account to deploy into, with an environment of the test's own."""

    def __init__(self, settings: Settings, pool_id: str) -> None:
        self.settings = settings
        self.pool_id = pool_id

    async def deploy_sh(self, *options: str, ok: bool = True) -> tuple[str, str]:
        """Runs deploy.sh; what it printed on standard output and error."""
        process = await asyncio.create_subprocess_exec(
            str(_SCRIPT),
            *options,
            env=os.environ | {"AWS_ENDPOINT_URL": str(self.settings.aws.endpoint_url)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, said = (text.decode() for text in await process.communicate())
        assert (process.returncode == 0) is ok, said
        return printed, said

    async def deploy(self, image: str, *options: str, ok: bool = True) -> tuple[str, str]:
        """Deploys an image, with TLS, without what the emulator lacks."""
        return await self.deploy_sh(
            *("--environment", self.settings.environment, "--user-pool-id", self.pool_id),
            *("--certificate-arn", CERTIFICATE, "--domain", "k9.example.com"),
            *("--image", image, "--no-smoke-test", "--no-alarms", *_OPTIONS, *options),
            ok=ok,
        )

    async def images(self) -> dict[str, str]:
        """The image of each service's task definition in use."""
        name = f"k9-{self.settings.environment}"
        async with open_client("ecs", self.settings) as client:
            services = await client.describe_services(cluster=name, services=["api", "worker"])
            found = {}
            for service in services["services"]:
                definition = service["taskDefinition"]
                task = await client.describe_task_definition(taskDefinition=definition)
                containers = task["taskDefinition"]["containerDefinitions"]
                found[service["serviceName"]] = containers[0]["image"]
        return found

    async def stack_status(self, stack: str) -> str | None:
        """The status of one of its stacks; None if there is none."""
        async with open_client("cloudformation", self.settings) as client:
            found = await stacks.describe(client, f"k9-{stack}-{self.settings.environment}")
        return str(found["StackStatus"]) if found else None


async def create_pool(settings: Settings) -> str:
    """A user pool of the emulator's; its id."""
    session = aioboto3.Session()
    async with session.client(
        "cognito-idp", region_name=settings.aws.region, endpoint_url=settings.aws.endpoint_url
    ) as client:
        return str((await client.create_user_pool(PoolName="of-the-account"))["UserPool"]["Id"])


async def deploy_here(account: Account, image: str, **changes: Any) -> list[str]:
    """Deploys in this process, without what the emulator lacks; the lines that were said."""
    said: list[str] = []
    given: dict[str, Any] = {
        "pool_id": account.pool_id,
        "certificate_arn": CERTIFICATE,
        "domain": "k9.example.com",
        "image": image,
        "smoke_test": False,
        "alarms": False,
        **changes,
        "parameters": {
            **dict(each.split("=") for each in _LEFT_OUT),
            **changes.get("parameters", {}),
        },
    }
    async with open_client("cloudformation", account.settings) as client:
        deployer = Deployer(account.settings, client, said.append)
        deployment = Deployment(**given)
        await deployer.check(deployment)
        await deployer.deploy(deployment)
    return said


@pytest.fixture
async def account(ministack: str) -> Account:
    """An account with a user pool and nothing of K9's."""
    settings = settings_for(ministack)
    return Account(settings, await create_pool(settings))


async def test_a_dry_run_changes_nothing(
    account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command shows what would be made, and makes none of it."""
    environment = account.settings.environment
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(account.settings.aws.endpoint_url))
    monkeypatch.setenv("K9_ENVIRONMENT", environment)
    options = ("--environment", environment, "--user-pool-id", account.pool_id)
    tls = ("--certificate-arn", CERTIFICATE, "--domain", "k9.example.com")
    command = ["deploy", *options, *tls, "--image", "example/k9:1", *_OPTIONS, "--dry-run"]
    assert await asyncio.to_thread(run, command) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"k9-base-{environment} to create:" in captured.err
    assert "add    EmbeddingsTable (AWS::DynamoDB::Table)" in captured.err
    assert captured.err.endswith("nothing was changed\n")
    assert [await account.stack_status(name) for name in ("base", "data", "service")] == [None] * 3


async def test_tables_change_their_billing_in_place(account: Account) -> None:
    """Provisioned with a stream, and on demand again: the same tables, with their rows."""
    await create_tables(account.settings)
    users = account.settings.table("users")
    async with (
        open_client("cloudformation", account.settings) as client,
        open_client("dynamodb", account.settings) as dynamo,
    ):
        await dynamo.put_item(TableName=users, Item={"user_id": {"S": "u"}})
        for billing, streams, mode in (
            ("provisioned", "on", "PROVISIONED"),
            ("on-demand", "off", "PAY_PER_REQUEST"),
        ):
            spec = stack_spec(account.settings, {"Billing": billing, "Streams": streams})
            assert await stacks.apply(client, spec) == "updated"
            table = (await dynamo.describe_table(TableName=users))["Table"]
            assert table["BillingModeSummary"]["BillingMode"] == mode
            stream = table.get("StreamSpecification") or {}
            assert stream.get("StreamEnabled", False) is (streams == "on")
            assert "Item" in await dynamo.get_item(TableName=users, Key={"user_id": {"S": "u"}})


async def test_alarms_and_dashboard(account: Account) -> None:
    """The stack of alarms, without those on sums over operations, which the emulator lacks."""
    template = read_template("alarms")
    left_out = [
        name
        for name, resource in template["Resources"].items()
        if name.startswith("Fn::ForEach") or "Metrics" in resource.get("Properties", {})
    ]
    assert left_out == ["Fn::ForEach::TableThrottles", "Fn::ForEach::TableErrors", "Errors"]
    for name in left_out:
        del template["Resources"][name]
    environment = account.settings.environment
    spec = stacks.StackSpec(
        f"k9-alarms-{environment}",
        yaml.safe_dump(template),
        {
            "Environment": environment,
            "LoadBalancerFullName": "app/k9/1",
            "TargetGroupFullName": "targetgroup/k9/1",
            "Email": "someone@example.com",
        },
    )
    async with open_client("cloudformation", account.settings) as client:
        assert await stacks.apply(client, spec) == "created"
    async with open_client("cloudwatch", account.settings) as client:
        alarms = await client.describe_alarms(AlarmNamePrefix=f"k9-{environment}-")
        dashboard = await client.get_dashboard(DashboardName=f"k9-{environment}")
    names = {
        alarm["AlarmName"].removeprefix(f"k9-{environment}-") for alarm in alarms["MetricAlarms"]
    }
    assert {"latency", "no-api", "build-failed", "build-open", "no-worker", "index-age"} <= names
    for table in tables.ALL:
        assert f"k9-{table.name}-{environment}" in dashboard["DashboardBody"]


async def test_the_api_as_a_function(account: Account) -> None:
    """The option of lambda.yaml: function, HTTP API and role are created, and deleted again."""
    environment = account.settings.environment
    secret = "arn:aws:secretsmanager:us-east-1:000000000000:secret:k9"
    spec = stacks.StackSpec(
        f"k9-lambda-{environment}",
        (stacks.TEMPLATES / "lambda.yaml").read_text(),
        {
            "Environment": environment,
            "Image": "000000000000.dkr.ecr.us-east-1.amazonaws.com/k9:1",
            "UserPoolId": account.pool_id,
            "ClientIds": "one,two",
            "ApiPolicyArn": "arn:aws:iam::000000000000:policy/k9",
            "RedisUrlSecret": secret,
            "CursorKeysSecret": secret,
            "Subnets": "subnet-1,subnet-2",
            "SecurityGroup": "sg-1",
        },
    )
    async with open_client("cloudformation", account.settings) as client:
        assert await stacks.apply(client, spec) == "created"
        assert (await stacks.outputs(client, spec.name))["Url"].startswith("http")
        async with open_client("lambda", account.settings) as functions:
            name = f"k9-{environment}-api"
            made = await functions.get_function_configuration(FunctionName=name)
            assert made["PackageType"] == "Image"
            assert made["Environment"]["Variables"]["K9_REDIS_URL_SECRET"] == secret
        assert await stacks.delete(client, spec.name)
        assert await stacks.describe(client, spec.name) is None


async def test_a_failing_update_is_rolled_back(account: Account) -> None:
    """Subnets that are not there: it fails with the reason, and what ran still runs."""
    await deploy_here(account, "example/k9:1")
    with pytest.raises(CommandError, match="UPDATE_ROLLBACK_COMPLETE: ValkeySubnets:"):
        await deploy_here(
            account, "example/k9:2", parameters={"PrivateSubnets": "subnet-0,subnet-1"}
        )
    assert await account.images() == {"api": "example/k9:1", "worker": "example/k9:1"}
    # Without the mistake it goes on from there.
    said = await deploy_here(account, "example/k9:2")
    assert await account.images() == {"api": "example/k9:2", "worker": "example/k9:2"}
    assert said.index("WorkerService: update complete") < said.index("ApiService: update complete")


async def test_an_api_that_does_not_answer_is_taken_back(account: Account) -> None:
    """After an update the service is what it was before; a first deployment stays as it is."""
    with pytest.raises(CommandError) as raised:
        await deploy_here(account, "example/k9:1", smoke_test=True, smoke_wait_s=0.01)
    failure = str(raised.value)
    assert failure.startswith("the API does not answer as it should: /health/ready: no answer")
    assert failure.endswith("it was never deployed before, so it stays")
    assert await account.images() == {"api": "example/k9:1", "worker": "example/k9:1"}
    with pytest.raises(CommandError, match="what was deployed before is back"):
        await deploy_here(account, "example/k9:2", smoke_test=True, smoke_wait_s=0.01)
    assert await account.images() == {"api": "example/k9:1", "worker": "example/k9:1"}


async def test_replicas_pools_and_deletion(account: Account) -> None:
    """Tables become global ones with their rows; a pool is one environment's; data goes last."""
    settings = account.settings
    await create_tables(settings, protection="false")
    users = settings.table("users")
    async with open_client("dynamodb", settings) as client:
        await client.put_item(TableName=users, Item={"user_id": {"S": "u"}})
    options = {"DeletionProtection": "false"}
    regions = ("eu-west-1",)
    said = await deploy_here(account, "example/k9:1", replica_regions=regions, parameters=options)
    assert sum("making a replica in eu-west-1" in line for line in said) == len(tables.ALL)
    there = replace(settings, aws=replace(settings.aws, region="eu-west-1"))
    async with open_client("dynamodb", there) as client:
        found = await client.get_item(TableName=users, Key={"user_id": {"S": "u"}})
        assert found["Item"] == {"user_id": {"S": "u"}}
    with pytest.raises(CommandError, match="is the region of the tables themselves"):
        await deploy_here(account, "example/k9:1", replica_regions=("us-east-1",))

    other = Account(settings_for(str(settings.aws.endpoint_url)), account.pool_id)
    with pytest.raises(CommandError, match=f"environment '{settings.environment}'"):
        await deploy_here(other, "example/k9:1")
    assert await other.stack_status("base") is None

    with pytest.raises(CommandError, match="has replicas in eu-west-1"):
        await check_deletable(settings)
    async with open_client("dynamodb", settings) as client:
        for table in tables.ALL:
            gone = {"Delete": {"RegionName": "eu-west-1"}}
            await client.update_table(TableName=settings.table(table.name), ReplicaUpdates=[gone])
    await check_deletable(settings)
    async with open_client("cloudformation", settings) as client:
        await Deployer(settings, client, said.append).delete(None)
    assert {table.status for table in await describe_tables(settings)} == {"ACTIVE"}
    await delete_data(settings, said.append)
    assert {table.status for table in await describe_tables(settings)} == {"MISSING"}
    await deploy_here(other, "example/k9:1")  # the pool is free again
