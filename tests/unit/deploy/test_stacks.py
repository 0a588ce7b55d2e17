from typing import Any

import pytest
from botocore.exceptions import ClientError

from core.settings import Settings, Tables
from deploy.aws import stacks
from deploy.aws.data_stack import create_tables
from deploy.errors import CommandError


class _CloudFormation:
    """One stack that goes through the given statuses, one a look; None is no stack."""

    def __init__(self, *statuses: str | None, failures: tuple[str, ...] = ()) -> None:
        self.statuses = list(statuses)
        self.failures = failures
        self.calls: list[str] = []
        self.refusal: ClientError | None = None

    async def describe_stacks(self, StackName: str) -> dict[str, Any]:  # noqa: N803
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status is None:
            raise _error(f"Stack with id {StackName} does not exist")
        return {"Stacks": [{"StackStatus": status}]}

    async def describe_stack_events(self, **_: Any) -> dict[str, Any]:
        if not {"create_stack", "update_stack"} & set(self.calls):
            return {"StackEvents": []}
        events = [
            {
                "EventId": str(number),
                "LogicalResourceId": "UsersTable",
                "ResourceStatus": "CREATE_FAILED",
                "ResourceStatusReason": reason,
            }
            for number, reason in enumerate(self.failures)
        ]
        return {"StackEvents": events[::-1]}

    async def create_stack(self, **_: Any) -> None:
        self.calls.append("create_stack")

    async def update_stack(self, **_: Any) -> None:
        self.calls.append("update_stack")

    async def execute_change_set(self, **_: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append("execute_change_set")

    async def delete_stack(self, **_: Any) -> None:
        self.calls.append("delete_stack")


def _error(message: str) -> ClientError:
    return ClientError({"Error": {"Code": "ValidationError", "Message": message}}, "DescribeStacks")


async def _apply(client: _CloudFormation, said: list[str] | None = None) -> str:
    report = (said if said is not None else []).append
    return await stacks.apply(client, stacks.StackSpec("k9-data-dev", "Resources:"), report)


async def test_the_first_real_failure_is_the_reason() -> None:
    """Not that of the resources which were cancelled for it; and on one line."""
    client = _CloudFormation(
        None,
        "CREATE_IN_PROGRESS",
        "ROLLBACK_IN_PROGRESS",
        "ROLLBACK_COMPLETE",
        failures=("Resource creation cancelled", "k9-users-dev\nalready exists"),
    )
    with pytest.raises(CommandError) as raised:
        await _apply(client)
    assert str(raised.value) == (
        "k9-data-dev ended as ROLLBACK_COMPLETE: UsersTable: k9-users-dev already exists"
    )


async def test_what_is_left_of_a_failed_creation_is_removed_first() -> None:
    """A stack that was rolled back can only be deleted; nothing is in it."""
    client = _CloudFormation("ROLLBACK_COMPLETE", "DELETE_IN_PROGRESS", None, "CREATE_COMPLETE")
    assert await _apply(client) == "created"
    assert client.calls == ["delete_stack", "create_stack"]


async def test_a_change_that_is_under_way_is_waited_for() -> None:
    """Two people may create the tables at once."""
    said: list[str] = []
    client = _CloudFormation("CREATE_IN_PROGRESS", "CREATE_COMPLETE", "UPDATE_COMPLETE")
    assert await _apply(client, said) == "updated"
    assert "waiting" in said[0]
    assert client.calls == ["update_stack"]


async def test_a_dry_run_deletes_nothing() -> None:
    """Not even what a failed creation left, which it tells of."""
    said: list[str] = []
    client = _CloudFormation("ROLLBACK_COMPLETE")
    spec = stacks.StackSpec("k9-data-dev", "Resources:")
    planned = await stacks.plan(client, spec, said.append, dry_run=True)
    await stacks.discard(client, planned)
    assert client.calls == []
    assert said == ["k9-data-dev: the stack of a failed creation would be deleted first"]


async def test_a_change_that_another_one_overtook_says_so() -> None:
    """CloudFormation drops the other change sets of a stack when it executes one."""
    planned = stacks.Plan(stacks.StackSpec("k9-data-dev", "Resources:"), "updated", "arn", ())
    for code, text in (
        ("ChangeSetNotFound", "ChangeSet [arn] does not exist"),
        ("InvalidChangeSetStatus", "cannot be executed in its current status of [OBSOLETE]"),
        (
            "ValidationError",
            "Stack:k9-data-dev is in UPDATE_IN_PROGRESS state and can not be updated",
        ),
    ):
        client = _CloudFormation("UPDATE_COMPLETE")
        client.refusal = ClientError({"Error": {"Code": code, "Message": text}}, "ExecuteChangeSet")
        with pytest.raises(CommandError, match=r"was changed by somebody else .* run the command"):
            await stacks.execute(client, planned)


async def test_a_rollback_that_failed_says_how_to_end_it() -> None:
    """CloudFormation takes no other change until then."""
    with pytest.raises(CommandError, match="continue-update-rollback --stack-name k9-data-dev"):
        await _apply(_CloudFormation("UPDATE_ROLLBACK_FAILED"))


async def test_table_names_of_ones_own_are_refused() -> None:
    """The template's names are fixed by the environment; nothing is asked of AWS."""
    settings = Settings(tables=Tables(users_table="mine"))
    with pytest.raises(CommandError, match="DYNAMODB_USERS_TABLE is 'mine'"):
        await create_tables(settings)
