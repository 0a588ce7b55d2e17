"""A moto that evaluates IAM's policies, and users of it."""

import json
import urllib.request
from collections.abc import Sequence
from typing import Any

import aioboto3


async def new_user(url: str, name: str, statements: Sequence[Any]) -> tuple[str, str]:
    """The access key and secret of a new user with these statements as its policy."""
    policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    async with aioboto3.Session().client("iam", endpoint_url=url) as client:
        await client.create_user(UserName=name)
        await client.put_user_policy(UserName=name, PolicyName="k9", PolicyDocument=policy)
        key: dict[str, Any] = (await client.create_access_key(UserName=name))["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def enforce_policies(url: str) -> None:
    """Makes moto evaluate policies from now on, and signatures with them."""
    headers = {"Content-Type": "text/plain"}  # the body of a form would be taken for fields
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", headers)  # noqa: S310
    urllib.request.urlopen(request).close()  # noqa: S310 - our own address
