"""CloudFormation stacks: applied, at once or by a change set that is shown first, and deleted.

A change that fails is rolled back by CloudFormation. Every function raises CommandError if
CloudFormation did not answer or did not accept a call.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import msgspec
from botocore.exceptions import ClientError

from core.retry import RetryPolicy
from deploy.aws.clients import code_of, message_of
from deploy.callbacks import MessageCallback, ignore
from deploy.errors import CommandError

TEMPLATES: Final = Path(__file__).parent.parent / "cloudformation"
_TEMPLATE_BYTES_MAX: Final = 51_200
"""CloudFormation's limit for a template that is sent with the call."""
_POLL: Final = RetryPolicy(first_s=0.05, max_s=3.0, jitter=0.0)
_WAIT_S: Final = 3600.0
_DELETED: Final = "DELETE_COMPLETE"
_REVIEW: Final = "REVIEW_IN_PROGRESS"
"""A stack that has a change set and nothing else."""
_BROKEN: Final = {"ROLLBACK_COMPLETE", "CREATE_FAILED", "ROLLBACK_FAILED", "DELETE_FAILED"}
GOOD: Final = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"}
_OVERTAKEN: Final = {"ChangeSetNotFound", "ChangeSetNotFoundException", "InvalidChangeSetStatus"}
_NO_CHANGES: Final = ("didn't contain changes", "No updates are to be performed")
_CAPABILITIES: Final = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]

Change = Literal["created", "updated", "unchanged"]


class StackSpec(msgspec.Struct, frozen=True):
    """A stack as it should be."""

    name: str
    template: str
    """Its text."""
    parameters: Mapping[str, str] = {}
    """Those that are set; of the others a stack that exists keeps its values."""
    policy: str | None = None
    """What updates may do to which resources, in JSON."""

    def parameters_for(self, stack: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """The parameters of a call; `stack` is the one that exists."""
        set_here = [
            {"ParameterKey": key, "ParameterValue": value} for key, value in self.parameters.items()
        ]
        new = parameter_names(self.template) - self.parameters.keys()
        kept = parameter_values(stack).keys() & new
        return set_here + [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)]


def parameter_names(template: str) -> frozenset[str]:
    """The names of the parameters in a template's text."""
    section = template.partition("\nParameters:\n")[2]
    names = set()
    for line in section.splitlines():
        if line and not line.startswith((" ", "#")):
            break
        if line.startswith("  ") and line[2:3].isalpha():
            names.add(line.partition(":")[0].strip())
    return frozenset(names)


class Plan(msgspec.Struct, frozen=True):
    """A change set that was created and not executed."""

    spec: StackSpec
    change: Change
    change_set: str
    """Its ARN; empty where there is none."""
    changes: tuple[str, ...]
    """A line per resource: whether it is added, modified or removed, and whether it is replaced."""


async def plan(
    client: Any, spec: StackSpec, message: MessageCallback = ignore, *, dry_run: bool = False
) -> Plan:
    """A change set for a stack, after waiting for the end of a change that is in progress.

    What a failed first creation left is deleted before, and in a dry run only told of: then there
    is no change set.
    """
    if dry_run:
        existing = await describe(client, spec.name)
        if existing is not None and existing["StackStatus"] in _BROKEN:
            message(f"{spec.name}: the stack of a failed creation would be deleted first")
            return Plan(spec, "created", "", ())
    stack = await _prepare(client, spec, message)
    change: Change = "created" if stack is None else "updated"
    reply = await client.create_change_set(
        StackName=spec.name,
        ChangeSetName=f"k9-{uuid4().hex}",
        ChangeSetType="CREATE" if stack is None else "UPDATE",
        TemplateBody=spec.template,
        Parameters=spec.parameters_for(stack),
        Capabilities=_CAPABILITIES,
        Tags=[{"Key": "k9:stack", "Value": spec.name}],
    )
    described = await _wait_for_change_set(client, spec, reply["Id"])
    if described["Status"] == "FAILED":
        await discard(client, Plan(spec, change, reply["Id"], ()))
        reason = str(described.get("StatusReason", "no reason was given"))
        if any(text in reason for text in _NO_CHANGES):
            return Plan(spec, "unchanged", "", ())
        raise CommandError(f"{spec.name}: {' '.join(reason.split())}")
    return Plan(spec, change, reply["Id"], tuple(_changes(described)))


async def apply(client: Any, spec: StackSpec, message: MessageCallback = ignore) -> Change:
    """Creates or updates a stack; `message` is called with each resource's result.

    Raises:
        CommandError: it failed, with the reason of the first resource that did. CloudFormation has
            then rolled it back.
    """
    stack = await _prepare(client, spec, message)
    seen = await _seen(client, spec.name)
    arguments = {
        "StackName": spec.name,
        "TemplateBody": spec.template,
        "Parameters": spec.parameters_for(stack),
        "Capabilities": _CAPABILITIES,
        **({"StackPolicyBody": spec.policy} if spec.policy else {}),
    }
    if stack is None:
        await client.create_stack(**arguments, OnFailure="ROLLBACK")
    else:
        try:
            await client.update_stack(**arguments)
        except ClientError as error:
            if code_of(error) == "ValidationError" and _NO_CHANGES[1] in message_of(error):
                return "unchanged"
            raise
    await _finish(client, spec, seen, message)
    return "created" if stack is None else "updated"


async def _prepare(client: Any, spec: StackSpec, message: MessageCallback) -> dict[str, Any] | None:
    """The stack that an update can be made to, None where one has to be created."""
    if len(spec.template.encode()) > _TEMPLATE_BYTES_MAX:
        raise CommandError(f"{spec.name}: the template is larger than {_TEMPLATE_BYTES_MAX} bytes")
    stack = await describe(client, spec.name)
    if stack and stack["StackStatus"] == _REVIEW:
        return None
    if stack and stack["StackStatus"].endswith("_IN_PROGRESS"):
        message(f"{spec.name}: another change is in progress, waiting for it")
        stack = await settle(client, spec.name, message)
    if stack and stack["StackStatus"] == "UPDATE_ROLLBACK_FAILED":
        raise CommandError(
            f"{spec.name}: CloudFormation could not roll its last update back. Remove the cause, "
            "which the stack's events tell, and then `aws cloudformation continue-update-rollback "
            f"--stack-name {spec.name}`"
        )
    if stack and stack["StackStatus"] in _BROKEN:
        # CloudFormation rolled back a failed first creation, so the stack has no resources.
        message(f"{spec.name}: deleting the stack of a failed creation")
        await client.delete_stack(StackName=spec.name)
        stack = await settle(client, spec.name, message)
    return stack


async def _finish(client: Any, spec: StackSpec, seen: set[str], message: MessageCallback) -> None:
    stack = await settle(client, spec.name, message, seen)
    status = stack["StackStatus"] if stack else _DELETED
    if status not in GOOD:
        reason = await _first_failure(client, spec.name, seen, stack)
        raise CommandError(f"{spec.name} ended as {status}: {reason}")


async def _wait_for_change_set(client: Any, spec: StackSpec, arn: str) -> dict[str, Any]:
    where = {"ChangeSetName": arn, "StackName": spec.name}
    described: dict[str, Any] = {}
    async for _ in _POLL.attempts(within_s=_WAIT_S):
        described = await client.describe_change_set(**where)
        if described["Status"] in {"CREATE_COMPLETE", "FAILED"}:
            break
    else:
        raise CommandError(f"{spec.name}: the change set is still {described['Status']}")
    page = described
    while token := page.get("NextToken"):
        page = await client.describe_change_set(**where, NextToken=token)
        described["Changes"] = [*described["Changes"], *page["Changes"]]
    return described


def _changes(described: Mapping[str, Any]) -> Iterator[str]:
    for each in described.get("Changes", []):
        change = each["ResourceChange"]
        replaced = change.get("Replacement") in {"True", "Conditional"}
        resource = f"{change['LogicalResourceId']} ({change['ResourceType']})"
        yield f"{change['Action'].lower():7}{resource}{', by a new one' if replaced else ''}"


async def execute(client: Any, planned: Plan, message: MessageCallback = ignore) -> dict[str, str]:
    """Executes a change set; `message` is called with each resource's result.

    Returns:
        The outputs of the stack.

    Raises:
        CommandError: it failed, with the reason of the first resource that did. CloudFormation has
            then rolled it back.
    """
    spec = planned.spec
    if planned.change != "unchanged":
        seen = await _seen(client, spec.name)
        try:
            await client.execute_change_set(ChangeSetName=planned.change_set, StackName=spec.name)
        except ClientError as error:
            if code_of(error) not in _OVERTAKEN and "_IN_PROGRESS state" not in message_of(error):
                raise
            raise CommandError(
                f"{spec.name} was changed by somebody else since this change was planned, so it "
                "was not made: run the command again"
            ) from error
        await _finish(client, spec, seen, message)
    if spec.policy is not None:
        await client.set_stack_policy(StackName=spec.name, StackPolicyBody=spec.policy)
    return await outputs(client, spec.name)


async def discard(client: Any, planned: Plan) -> None:
    """Removes a change set, and the empty stack that it was to create."""
    if not planned.change_set:
        return
    name = planned.spec.name
    await client.delete_change_set(ChangeSetName=planned.change_set, StackName=name)
    stack = await describe(client, name)
    if stack and stack["StackStatus"] == _REVIEW:
        await client.delete_stack(StackName=name)


async def outputs(client: Any, name: str) -> dict[str, str]:
    """The outputs of a stack; empty if there is no such stack."""
    stack = await describe(client, name)
    return {o["OutputKey"]: o["OutputValue"] for o in (stack or {}).get("Outputs", [])}


async def delete(client: Any, name: str, message: MessageCallback = ignore) -> bool:
    """Deletes a stack with what its template does not retain; False if there is none."""
    stack = await describe(client, name)
    if stack is None:
        return False
    seen = await _seen(client, name)
    await client.delete_stack(StackName=name)
    # By its id, which a deleted stack still answers to.
    stack = await settle(client, stack["StackId"], message, seen)
    if stack is not None:
        reason = await _first_failure(client, name, seen, stack)
        raise CommandError(f"{name} ended as {stack['StackStatus']}: {reason}")
    return True


async def describe(client: Any, name: str) -> dict[str, Any] | None:
    """CloudFormation's description of a stack; None if there is none, or it is deleted."""
    try:
        reply = await client.describe_stacks(StackName=name)
    except ClientError as error:
        # CloudFormation has no separate code for a stack that does not exist.
        if code_of(error) == "ValidationError" and "does not exist" in message_of(error):
            return None
        raise
    stack: dict[str, Any] = reply["Stacks"][0]
    return None if stack["StackStatus"] == _DELETED else stack


def is_made(stack: Mapping[str, Any]) -> bool:
    """Whether a stack was created once: then it has resources, and values of its parameters."""
    status = str(stack["StackStatus"])
    return status in GOOD or status.startswith("UPDATE_")


def parameter_values(stack: Mapping[str, Any] | None) -> dict[str, str]:
    """The values of a stack's parameters; empty if there is no such stack."""
    return {p["ParameterKey"]: p["ParameterValue"] for p in (stack or {}).get("Parameters", [])}


async def settle(
    client: Any, name: str, message: MessageCallback, seen: set[str] | None = None
) -> dict[str, Any] | None:
    """The stack once no change is in progress; `message` is called with each resource's result."""
    known = set() if seen is None else set(seen)
    status = ""
    async for _ in _POLL.attempts(within_s=_WAIT_S):
        stack = await describe(client, name)
        if stack is not None and seen is not None:
            for event in await _events(client, name):
                if event["EventId"] not in known:
                    known.add(event["EventId"])
                    if event["ResourceStatus"].endswith(("_COMPLETE", "_FAILED")):
                        result = str(event["ResourceStatus"]).lower().replace("_", " ")
                        message(f"{event['LogicalResourceId']}: {result}")
        # This includes UPDATE_COMPLETE_CLEANUP_IN_PROGRESS.
        status = stack["StackStatus"] if stack else _DELETED
        if not status.endswith("_IN_PROGRESS"):
            return stack
    raise CommandError(f"{name} is still {status} after {_WAIT_S:.0f} s")


async def _seen(client: Any, name: str) -> set[str]:
    return {event["EventId"] for event in await _events(client, name)}


async def _events(client: Any, name: str) -> list[dict[str, Any]]:
    """The newest page of the stack's events, oldest first."""
    try:
        reply = await client.describe_stack_events(StackName=name)
    except ClientError as error:
        if code_of(error) == "ValidationError":
            return []
        raise
    return list(reversed(reply["StackEvents"]))


async def _first_failure(
    client: Any, name: str, seen: set[str], stack: dict[str, Any] | None
) -> str:
    for event in await _events(client, name):
        reason = str(event.get("ResourceStatusReason", ""))
        failed = event["ResourceStatus"].endswith("_FAILED")
        if event["EventId"] not in seen and failed and "cancelled" not in reason:
            return f"{event['LogicalResourceId']}: {' '.join(reason.split())}"
    return str((stack or {}).get("StackStatusReason", "no reason was given"))
