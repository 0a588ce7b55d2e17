"""Signatures, held against botocore's own."""

import datetime as dt

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from core.dynamo.signing import Signer

TARGET = "DynamoDB_20120810.GetItem"
SECRET = "a-secret/of+this=test"
KEY = Credentials("AKIDEXAMPLE", SECRET)
SESSION = Credentials("ASIAEXAMPLE", SECRET, "a//token+==")
AT = dt.datetime(2026, 1, 31, 23, 59, 59, tzinfo=dt.UTC)


def by_botocore(
    url: str, region: str, credentials: Credentials, body: bytes, at: dt.datetime
) -> dict[str, str]:
    """The headers of a request that botocore signed at that time."""
    headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": TARGET}
    request = AWSRequest("POST", url, headers, body)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("botocore.auth.get_current_datetime", lambda: at)
        SigV4Auth(credentials, "dynamodb", region).add_auth(request)
    return dict(request.headers.items())


@pytest.mark.parametrize("credentials", [KEY, SESSION], ids=["key", "session"])
@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://dynamodb.eu-central-1.amazonaws.com", "dynamodb.eu-central-1.amazonaws.com"),
        ("https://dynamodb.eu-central-1.amazonaws.com/", "dynamodb.eu-central-1.amazonaws.com"),
        ("http://127.0.0.1:4000", "127.0.0.1:4000"),
        ("http://[::1]:4000/", "[::1]:4000"),
        ("http://gateway:4000/a/../some%20where/", "gateway:4000"),
    ],
)
@pytest.mark.parametrize("body", [b"{}", b"\x00\xff" * 1000])
def test_it_signs_as_botocore_does(
    url: str, host: str, credentials: Credentials, body: bytes
) -> None:
    """Every header that botocore adds, the signature too, at any address."""
    at = AT.strftime("%Y%m%dT%H%M%SZ")
    ours = Signer(url, "eu-central-1").headers(credentials, TARGET, body, at)
    assert ours.pop("Host") == host
    assert ours == by_botocore(url, "eu-central-1", credentials, body, AT)


def test_the_key_of_a_day_is_not_taken_for_another() -> None:
    """A signer goes on over midnight, and after its credentials were replaced."""
    url = "https://dynamodb.eu-central-1.amazonaws.com"
    signer = Signer(url, "eu-central-1")
    other = Credentials(KEY.access_key, "another-secret")
    for credentials, at in (
        (KEY, AT),
        (KEY, AT + dt.timedelta(seconds=1)),
        (other, AT + dt.timedelta(seconds=1)),
        (KEY, AT),
    ):
        text = at.strftime("%Y%m%dT%H%M%SZ")
        ours = signer.headers(credentials, TARGET, b"{}", text)
        stock = by_botocore(url, "eu-central-1", credentials, b"{}", at)
        assert ours["Authorization"] == stock["Authorization"]
