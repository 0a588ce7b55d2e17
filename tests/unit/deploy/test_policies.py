"""The roles of API and worker: what the code does, and nothing else."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests import aws_calls
from tests.aws_calls import AwsCall, caller, needed, read_list
from tests.templates import arguments_only, read_template

_ARN = "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/k9-"
_BUCKET = "arn:${AWS::Partition}:s3:::k9-indexes-${Environment}-${AWS::AccountId}"


def statements(role: str) -> list[dict[str, Any]]:
    """The statements of a role, in it or in the policies that it names."""
    resources = arguments_only(read_template("service")["Resources"])
    properties = resources[role]["Properties"]
    known = {"Description", "AssumeRolePolicyDocument", "Policies", "ManagedPolicyArns"}
    assert properties.keys() <= known
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    named = [resources[name]["Properties"] for name in properties.get("ManagedPolicyArns", [])]
    documents += [policy["PolicyDocument"] for policy in named]
    return [statement for document in documents for statement in document["Statement"]]


def several(value: Any) -> list[Any]:
    """A list, or the one in place of it."""
    return value if isinstance(value, list) else [value]


def granted(role: str) -> Iterator[AwsCall]:
    """What a role grants, as the list of calls has it."""
    for statement in statements(f"{role.capitalize()}Role"):
        assert statement["Effect"] == "Allow"
        for arn in several(statement["Resource"]):
            resource = "bucket"
            if arn.startswith(_ARN):
                table, _, index = arn.removeprefix(_ARN).partition("-${Environment}")
                resource = table + index.replace("/index/", "/")
            else:
                assert arn.startswith(_BUCKET)
            yield from (AwsCall(role, action, resource) for action in several(statement["Action"]))


@pytest.mark.parametrize("role", aws_calls.ROLES)
def test_a_role_grants_what_its_process_calls(role: str) -> None:
    """The template and the calls that tests recorded are the same, both ways."""
    called = {call for call in read_list() if call.role == role}
    assert called
    assert set(granted(role)) == called


@pytest.mark.parametrize("role", ["ApiRole", "WorkerRole", "ExecutionRole"])
def test_no_role_has_a_wildcard(role: str) -> None:
    """Neither in an action nor in a resource, but for an environment's prefixes and the login."""
    for statement in statements(role):
        assert not [a for a in several(statement["Action"]) if "*" in a]
        wide = [r for r in several(statement["Resource"]) if "*" in r]
        if statement["Sid"] == "RegistryLogin":
            assert statement["Action"] == "ecr:GetAuthorizationToken"
            assert wide == ["*"]
        else:
            own = f"{_BUCKET}/environments/${{Environment}}/"
            allowed = {f"{own}*", f"{own}imports/uploads/*", f"{_BUCKET}/indexes/*"}
            assert set(wide) <= allowed


def test_nothing_is_listed_above_the_prefixes() -> None:
    """The right to list has the environment's prefixes as its condition."""
    for role in ("ApiRole", "WorkerRole"):
        (listing,) = (s for s in statements(role) if "s3:ListBucket" in several(s["Action"]))
        assert listing["Condition"] == {
            "StringLikeIfExists": {"s3:prefix": ["environments/${Environment}/*", "indexes/*"]}
        }


def test_a_function_that_traces_may_write_its_traces() -> None:
    """Lambda refuses to create it otherwise, which the emulator does not."""
    resources = arguments_only(read_template("lambda")["Resources"])
    assert resources["Function"]["Properties"]["TracingConfig"]["Mode"] == "Active"
    (policy,) = resources["Role"]["Properties"]["Policies"]
    actions = {a for s in policy["PolicyDocument"]["Statement"] for a in several(s["Action"])}
    assert {"xray:PutTraceSegments", "xray:PutTelemetryRecords"} <= actions


def test_health_is_asked_where_clients_are_not() -> None:
    """On the port for operations, which only the load balancer reaches, and no listener names."""
    resources = arguments_only(read_template("service")["Resources"])
    health = int(resources["Targets"]["Properties"]["HealthCheckPort"])
    (container,) = resources["ApiTask"]["Properties"]["ContainerDefinitions"]
    variables = {each["Name"]: each["Value"] for each in container["Environment"]}
    assert variables["K9_METRICS_PORT"] == str(health) != variables["K9_PORT"]
    (rule,) = resources["ApiGroup"]["Properties"]["SecurityGroupIngress"]
    assert rule["FromPort"] <= health <= rule["ToPort"]
    assert rule["SourceSecurityGroupId"] == "LoadBalancerGroup.GroupId"
    (target,) = resources["ApiService"]["Properties"]["LoadBalancers"]
    assert target["ContainerPort"] == int(variables["K9_PORT"])


def test_calls_are_told_apart_by_table_and_index() -> None:
    """A transaction needs the right of each of its parts, a batch that of its tables."""
    found = needed(
        "dynamodb",
        "TransactWriteItems",
        {
            "TransactItems": [
                {"Put": {"TableName": "k9-users-x"}},
                {"ConditionCheck": {"TableName": "k9-models-x"}},
            ]
        },
    )
    assert list(found) == [("dynamodb:PutItem", "users"), ("dynamodb:ConditionCheckItem", "models")]
    query = {"TableName": "k9-reports-x", "IndexName": "UserReportsIndex"}
    assert list(needed("dynamodb", "Query", query)) == [
        ("dynamodb:Query", "reports/UserReportsIndex")
    ]
    batch: dict[str, Any] = {"RequestItems": {"k9-embeddings-x": []}}
    assert list(needed("dynamodb", "BatchWriteItem", batch)) == [
        ("dynamodb:BatchWriteItem", "embeddings")
    ]


def test_calls_of_tests_count_for_no_role() -> None:
    """Here it is a test that calls."""
    assert caller(sys._getframe()) == "tests"  # noqa: SLF001
