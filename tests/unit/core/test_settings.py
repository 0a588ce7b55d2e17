"""Settings come from the environment alone, and say what is wrong with them."""

from pathlib import Path

import pytest

from core.errors import SettingsError
from core.settings import Settings


def test_without_a_variable_there_are_safe_defaults() -> None:
    """An empty environment gives settings for a process on this machine, loopback only."""
    settings = Settings.from_env({})
    assert settings.environment == "dev"
    assert settings.http.host == "127.0.0.1"
    assert settings.aws.endpoint_url is None


def test_variables_are_read_in_their_types() -> None:
    """Numbers, flags, lists and paths come out as such."""
    settings = Settings.from_env(
        {
            "K9_PORT": "8080",
            "K9_LOG_JSON": "false",
            "K9_AUTH_CLIENT_IDS": "a, b,",
            "K9_WORK_DIR": "/somewhere",
            "K9_LEASE_S": "1.5",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        }
    )
    assert settings.http.port == 8080
    assert settings.log_json is False
    assert settings.auth.auth_client_ids == ("a", "b")
    assert settings.building.work_dir == Path("/somewhere")
    assert settings.building.lease_s == 1.5
    assert settings.aws.endpoint_url == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("environ", "region"),
    [
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2"),
        ({"AWS_REGION": ""}, "us-east-1"),
    ],
)
def test_the_region_is_awss_own(environ: dict[str, str], region: str) -> None:
    """AWS_REGION goes before AWS_DEFAULT_REGION; an empty variable counts as unset."""
    assert Settings.from_env(environ).aws.region == region


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("K9_PORT", "http"),
        ("K9_PORT", "65536"),
        ("K9_LEASE_S", "-1"),
        ("K9_ENVIRONMENT", "Not A Name"),
        ("K9_LOG_LEVEL", "loud"),
        ("K9_SHARDS", "0"),
    ],
)
def test_a_bad_value_names_its_variable(variable: str, text: str) -> None:
    """What does not hold is refused in one line that says which variable it was."""
    with pytest.raises(SettingsError, match=variable) as raised:
        Settings.from_env({variable: text})
    assert "\n" not in str(raised.value)


def test_tables_are_named_by_environment_or_override() -> None:
    """Environments are apart by name; one table's name can be given outright."""
    settings = Settings.from_env({"K9_ENVIRONMENT": "staging", "DYNAMODB_USERS_TABLE": "people"})
    assert settings.table("users") == "people"
    assert settings.table("embeddings") == "k9-embeddings-staging"


def test_a_patient_process_waits() -> None:
    """For one call as long as it takes, through throttling too, with the same tries."""
    usual = Settings.from_env({"K9_PATIENT_DEADLINE_S": "30", "K9_ATTEMPTS_MAX": "3"})
    patient = usual.patient()
    assert (patient.aws.deadline_s, patient.aws.read_timeout_s) == (30.0, 10.0)
    assert (usual.aws.waits_out_throttling, patient.aws.waits_out_throttling) == (False, True)
    assert patient.aws.attempts_max == 3
