"""The CloudFormation stack of an environment's tables and bucket, by `cloudformation/data.yaml`."""

import json
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from core.dynamo import tables
from core.settings import Settings
from deploy.aws import stacks
from deploy.aws.clients import open_client
from deploy.aws.stacks import Change
from deploy.aws.tables import ensure_settings
from deploy.callbacks import MessageCallback, ignore
from deploy.errors import CommandError

TEMPLATE: Final = stacks.TEMPLATES / "data.yaml"
Protection = Literal["auto", "true", "false"]

# An update may change a table in place, but never replace it by an empty one with another key.
_STACK_POLICY = json.dumps(
    {
        "Statement": [
            {"Effect": "Allow", "Action": "Update:*", "Principal": "*", "Resource": "*"},
            {
                "Effect": "Deny",
                "Action": ["Update:Replace", "Update:Delete"],
                "Principal": "*",
                "Resource": "*",
                "Condition": {
                    "StringEquals": {"ResourceType": ["AWS::DynamoDB::Table", "AWS::S3::Bucket"]}
                },
            },
        ]
    }
)


class DataStack(msgspec.Struct, frozen=True):
    """What `create_tables` did, and the stack's outputs."""

    name: str
    change: Change
    outputs: dict[str, str]
    """The template's outputs: `UsersTableName`, `IndexesBucketName` and so on."""

    @property
    def bucket(self) -> str:
        """The name of the bucket of index versions."""
        return self.outputs["IndexesBucketName"]


def stack_spec(settings: Settings, parameters: Mapping[str, str]) -> stacks.StackSpec:
    """The stack of an environment's tables and bucket.

    Raises:
        CommandError: a variable gives a table another name than the template does.
    """
    _refuse_overrides(settings)
    return stacks.StackSpec(
        name=f"k9-data-{settings.environment}",
        template=TEMPLATE.read_text(encoding="utf-8"),
        parameters={"Environment": settings.environment, **parameters},
        policy=_STACK_POLICY,
    )


async def create_tables(
    settings: Settings, *, protection: Protection = "auto", message: MessageCallback = ignore
) -> DataStack:
    """Creates the environment's tables and bucket, or updates them to the template.

    Running it again changes nothing. `message` is called with a line per step.

    Raises:
        CommandError: CloudFormation did not accept it or a resource failed; with the reason.
    """
    spec = stack_spec(settings, {"DeletionProtection": protection})
    async with open_client("cloudformation", settings) as client:
        change = await stacks.apply(client, spec, message)
        outputs = await stacks.outputs(client, spec.name)
    if "IndexesBucketName" not in outputs:
        raise CommandError(f"the stack {spec.name} has no output IndexesBucketName: is it K9's?")
    await ensure_settings(settings, message)
    return DataStack(spec.name, change, outputs)


def _refuse_overrides(settings: Settings) -> None:
    for table in tables.ALL:
        name = f"k9-{table.name}-{settings.environment}"
        override = settings.table(table.name)
        if override != name:
            raise CommandError(
                f"DYNAMODB_{table.name.upper()}_TABLE is {override!r}, but the template creates "
                f"{name!r}: unset it to create the tables"
            )
