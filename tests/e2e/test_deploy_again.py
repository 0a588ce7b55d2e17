"""Deployments of an environment that is there already, against the embedded AWS.

What the emulator lacks is left out as in `test_deploy.py`.
"""

from typing import Any

import aioboto3
import pytest
from msgspec.structs import replace

from deploy.aws import stacks
from deploy.aws.clients import open_client
from deploy.aws.data_stack import create_tables
from deploy.aws.deletion import delete_data
from deploy.aws.deployment import Deployer
from deploy.aws.deployment_options import Deployment, Network
from deploy.aws.user_pool import check_pool, claim_pool
from deploy.errors import CommandError
from tests.e2e.test_deploy import Account, account, deploy_here

__all__ = ["account"]
"""A fixture, by being named here."""
_TOPIC = """Resources: {Topic: {Type: "AWS::SNS::Topic"}}"""


async def dry_run(account: Account, image: str, **changes: Any) -> list[str]:
    """The lines of a dry run."""
    said: list[str] = []
    given = {"pool_id": account.pool_id, "client_range": "203.0.113.7/32", **changes}
    async with open_client("cloudformation", account.settings) as client:
        deployer = Deployer(account.settings, client, said.append)
        await deployer.dry_run(Deployment(image=image, **given))
    return said


async def parameters_of(account: Account, stack: str) -> dict[str, str]:
    """The parameters that a stack has."""
    async with open_client("cloudformation", account.settings) as client:
        name = f"k9-{stack}-{account.settings.environment}"
        found = await stacks.describe(client, name) or {}
    return {each["ParameterKey"]: each["ParameterValue"] for each in found["Parameters"]}


async def existing_network(account: Account) -> Network:
    """A VPC that is somebody's own, with two subnets."""
    async with open_client("ec2", account.settings) as client:
        vpc = (await client.create_vpc(CidrBlock="10.7.0.0/16"))["Vpc"]["VpcId"]
        subnets = []
        for number in range(2):
            block = f"10.7.{number}.0/24"
            made = await client.create_subnet(VpcId=vpc, CidrBlock=block)
            subnets.append(made["Subnet"]["SubnetId"])
    return Network(vpc, tuple(subnets), tuple(subnets))


async def test_an_update_that_does_not_answer_is_taken_back_after_one_that_failed(
    account: Account,
) -> None:
    """A stack whose last update was rolled back is in use as any other."""
    await deploy_here(account, "example/k9:1")
    with pytest.raises(CommandError, match="UPDATE_ROLLBACK_COMPLETE"):
        await deploy_here(
            account, "example/k9:2", parameters={"PrivateSubnets": "subnet-0,subnet-1"}
        )
    with pytest.raises(CommandError, match="what was deployed before is back"):
        await deploy_here(account, "example/k9:3", smoke_test=True, smoke_wait_s=0.01)
    assert await account.images() == {"api": "example/k9:1", "worker": "example/k9:1"}


async def test_an_existing_network_is_kept_and_not_left(account: Account) -> None:
    """Without its options a deployment stays where the last one put it; it never moves."""
    network = await existing_network(account)
    await deploy_here(account, "example/k9:1", network=network)
    before = await parameters_of(account, "service")
    await deploy_here(account, "example/k9:2")
    after = await parameters_of(account, "service")
    assert after["Image"] == "example/k9:2"
    assert {**after, "Image": before["Image"]} == before
    assert (await parameters_of(account, "base"))["CreateNetwork"] == "false"
    with pytest.raises(CommandError, match="cannot be moved"):
        await deploy_here(account, "example/k9:2", network=await existing_network(account))


async def test_a_network_of_its_own_is_not_left(account: Account) -> None:
    """Its subnets would be deleted below the tasks."""
    await deploy_here(account, "example/k9:1")
    with pytest.raises(CommandError, match="stands in a VPC of its own, and cannot be moved"):
        await deploy_here(account, "example/k9:2", network=await existing_network(account))


async def test_a_failed_creation_leaves_no_options(account: Account) -> None:
    """What it was given is gone with it: the next run is told what to give."""
    bad = {"PrivateSubnets": "subnet-0,subnet-1"}
    with pytest.raises(CommandError, match=r"k9-service-.* ended as ROLLBACK_COMPLETE"):
        await deploy_here(account, "example/k9:1", parameters=bad)
    said = await dry_run(account, "example/k9:1")
    assert any(line.endswith("a failed creation would be deleted first") for line in said)
    assert await account.stack_status("service") == "ROLLBACK_COMPLETE"
    with pytest.raises(CommandError, match="needs TLS: give --certificate-arn"):
        await deploy_here(account, "example/k9:1", certificate_arn=None)
    await deploy_here(account, "example/k9:1")


async def test_a_parameter_that_has_an_option_is_refused(account: Account) -> None:
    """Else another environment's name or pool would pass by the checks."""
    for name in ("Environment", "UserPoolId", "Image", "CreateNetwork", "VpcId"):
        with pytest.raises(CommandError, match=f"--parameter {name}=…: give --"):
            await deploy_here(account, "example/k9:1", parameters={name: "other"})
    for name in ("a--b", "a-", "a" * 30):
        other = Account(replace(account.settings, environment=name), account.pool_id)
        with pytest.raises(CommandError, match="single hyphens"):
            await deploy_here(other, "example/k9:1")


async def test_a_dry_run_tells_what_it_cannot_plan(account: Account) -> None:
    """On an empty account the service, whose network is not there."""
    environment = account.settings.environment
    said = await dry_run(
        account, "example/k9:1", parameters={"NatGateways": "0"}, replica_regions=("eu-west-1",)
    )
    assert "each table would have a replica in eu-west-1" in said
    assert said[-1].startswith(f"k9-service-{environment}, k9-alarms-{environment}: not planned")
    # What scales provisioned units is planned too, which the emulator cannot.
    provisioned = {"NatGateways": "0", "Billing": "provisioned"}
    with pytest.raises(CommandError, match="ApplicationAutoScaling::ScalableTarget"):
        await dry_run(account, "example/k9:1", parameters=provisioned)
    for name in ("base", "data", "service"):
        assert await account.stack_status(name) is None


async def test_what_is_elsewhere_or_has_another_name_is_told_first(account: Account) -> None:
    """A pool of another region, and a table's name in the environment of the command."""
    abroad = Account(account.settings, "eu-west-1_AbCdEfGhI")
    with pytest.raises(CommandError, match="by its id it is in eu-west-1: set AWS_REGION"):
        await deploy_here(abroad, "example/k9:1")
    named = replace(account.settings, tables=replace(account.settings.tables, users_table="mine"))
    with pytest.raises(CommandError, match="DYNAMODB_USERS_TABLE is 'mine'"):
        await deploy_here(Account(named, account.pool_id), "example/k9:1")
    assert await account.stack_status("base") is None


async def test_a_pool_claimed_meanwhile_is_refused(account: Account) -> None:
    """Two environments may both find it free; one of them gets it."""
    other = replace(account.settings, environment="other")
    await check_pool(other, account.pool_id)
    await claim_pool(account.settings, account.pool_id)
    with pytest.raises(CommandError, match="is that of the environment"):
        await claim_pool(other, account.pool_id)


async def test_backups_follow_the_service(account: Account) -> None:
    """Made once by the option, with the service's network; later runs replace their image."""
    await deploy_here(account, "example/k9:1", backups=True, parameters={"RetentionDays": "7"})
    await deploy_here(account, "example/k9:2")
    backup = await parameters_of(account, "backup")
    service = await parameters_of(account, "service")
    assert (backup["Image"], backup["RetentionDays"]) == ("example/k9:2", "7")
    for name in ("VpcId", "TaskSubnets", "PublicAddresses"):
        assert backup[name] == service[name]
    said = await dry_run(account, "example/k9:3")
    assert f"k9-backup-{account.settings.environment} to update:" in said


async def test_what_stands_on_it_goes_first(account: Account) -> None:
    """CloudFormation would fail half-way at a network and a policy that are in use."""
    await deploy_here(account, "example/k9:1")
    name = f"k9-backup-{account.settings.environment}"
    async with open_client("cloudformation", account.settings) as client:
        await stacks.apply(client, stacks.StackSpec(name, _TOPIC))
        deployer = Deployer(account.settings, client, lambda _: None)
        with pytest.raises(CommandError, match=f"delete-stack --stack-name {name}"):
            await deployer.delete(None)
        assert await account.stack_status("service") is not None
        await stacks.delete(client, name)
        await deployer.delete(None)


async def test_an_interrupted_deletion_is_finished(account: Account) -> None:
    """The bucket goes too where the stack that named it is gone."""
    made = await create_tables(account.settings, protection="false")
    async with open_client("cloudformation", account.settings) as client:
        await stacks.delete(client, made.name)
    said: list[str] = []
    await delete_data(account.settings, said.append)
    assert f"deleting the bucket {made.bucket}" in said
    endpoint = account.settings.aws.endpoint_url
    async with aioboto3.Session().client("s3", endpoint_url=endpoint) as client:
        buckets = {each["Name"] for each in (await client.list_buckets())["Buckets"]}
    assert made.bucket not in buckets
    said.clear()
    await delete_data(account.settings, said.append)
    assert not any("bucket" in line for line in said)
