"""What K9 needs beside DynamoDB: the bucket, Redis, and the keys of the user pool."""

import json
import re
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from core import names
from core.errors import SettingsError, Unavailable
from core.queue import open_queue
from core.rates import ANYONE, parse_policies
from core.settings import Settings
from deploy.aws.attempts import Attempt, attempt
from deploy.doctor.report import Check, Process, failed, not_allowed, ok, warning

_JWKS_BYTES_MAX: Final = 256 * 1024
_HTTP_OK: Final = 200
BUCKET_ACTIONS: Final[dict[Process, tuple[str, ...]]] = {
    "api": ("s3:ListBucket", "s3:GetObject", "s3:PutObject"),
    "worker": (
        *("s3:ListBucket", "s3:PutObject", "s3:GetObject"),
        *("s3:AbortMultipartUpload", "s3:DeleteObject"),
    ),
}
"""The actions that each process calls on the bucket and its objects, or signs addresses for."""
_POOL_IN_URL: Final = re.compile(r"/([a-z0-9-]+_[A-Za-z0-9]+)/\.well-known/")


# --- the bucket -----------------------------------------------------------------------------------


async def check_bucket(
    client: Any, settings: Settings, bucket: str, key: str, process: Process | None
) -> list[Check]:
    """That the bucket is there, and each right on it that API or worker need.

    For a worker it puts an object of its own below the environment's prefix, and deletes it. For an
    API, which may delete nothing, it asks for a put that cannot be carried out.
    """
    subject = f"bucket {bucket}"
    name = f"{names.environment_prefix(settings.environment)}doctor/{key}"
    listed = await attempt(client, "list_objects_v2", Bucket=bucket, Prefix=name)
    if listed.code == "NoSuchBucket":
        advice = "run `k9 tables create`, or set K9_BUCKET to the bucket that it made"
        return [failed(subject, "does not exist", advice)]
    if not listed.permitted and listed.outcome != "denied":
        return [failed(subject, listed.message, "set AWS_ENDPOINT_URL_S3 to where S3 is")]
    made = {"s3:ListBucket": listed}
    if "s3:DeleteObject" in BUCKET_ACTIONS[process or "worker"]:
        made |= await _write(client, bucket, name)
    else:
        # Without an object there is a 404, where reading is allowed.
        made["s3:GetObject"] = await attempt(client, "head_object", Bucket=bucket, Key=name)
        # Only there, and by its condition only in place of an object, which does not exist. Rights
        # are checked before.
        made["s3:PutObject"] = await attempt(
            client,
            "put_object",
            Bucket=bucket,
            Key=f"{names.uploads_prefix(settings.environment)}doctor-{key}",
            IfMatch='"0"',
        )
    denied = [action for action, each in made.items() if each.outcome == "denied"]
    if denied:
        advice = f"allow the role {', '.join(denied)} on {bucket} and its objects"
        return [failed(subject, f"denied: {', '.join(denied)}", advice)]
    broken = next((each for each in made.values() if not each.permitted), None)
    if broken is not None:
        return [failed(subject, broken.message, "see the message of S3")]
    return [ok(subject, ", ".join(made)), await _check_lifecycle(client, bucket)]


async def _write(client: Any, bucket: str, name: str) -> dict[str, Attempt]:
    """Puts, reads and deletes an object, and begins and aborts an upload in parts."""
    where = {"Bucket": bucket, "Key": name}
    made = {"s3:PutObject": await attempt(client, "put_object", **where, Body=b"k9 doctor\n")}
    made["s3:GetObject"] = await attempt(client, "head_object", **where)
    upload = await attempt(client, "create_multipart_upload", **where)
    if upload.outcome == "ok":
        made["s3:AbortMultipartUpload"] = await attempt(
            client, "abort_multipart_upload", **where, UploadId=upload.reply["UploadId"]
        )
    made["s3:DeleteObject"] = await attempt(client, "delete_object", **where)
    return made


async def _check_lifecycle(client: Any, bucket: str) -> Check:
    subject = f"lifecycle of {bucket}"
    found = await attempt(client, "get_bucket_lifecycle_configuration", Bucket=bucket)
    if found.outcome == "denied":
        return not_allowed(subject, "s3:GetLifecycleConfiguration")
    rules = found.reply.get("Rules", [])
    if any(rule.get("AbortIncompleteMultipartUpload") for rule in rules):
        return ok(subject, "interrupted uploads are removed")
    return warning(
        subject,
        "interrupted uploads stay, and are paid for",
        "run `k9 tables create`, whose template has the rule (the embedded S3 keeps none)",
    )


# --- Redis ----------------------------------------------------------------------------------------


async def check_redis(settings: Settings) -> list[Check]:
    """That Redis answers, accepts the password, and evicts no job."""
    parts = urlsplit(settings.redis_url)
    subject = f"redis {parts.hostname}:{parts.port or 6379}"  # never with its password
    try:
        async with open_queue(settings) as queue:
            server = await queue.describe()
    except Unavailable as error:
        return [
            failed(
                subject,
                str(error),
                "set REDIS_URL to an address, user and password that it accepts (rediss:// for "
                "TLS). Until then builds start late, and changes show only after the next poll",
            )
        ]
    if server.maxmemory and server.maxmemory_policy != "noeviction":
        return [
            warning(
                subject,
                f"version {server.version}, evicts by {server.maxmemory_policy}",
                "set its maxmemory-policy to noeviction: a job that is evicted starts late",
            )
        ]
    return [ok(subject, f"version {server.version}, {parts.scheme}")]


# --- rates of callers -----------------------------------------------------------------------------


def check_rates(settings: Settings) -> Check:
    """That the rates of callers can be read, and that each of them applies to someone."""
    try:
        policies = parse_policies(settings.http.rates)
    except SettingsError as error:
        return failed("rates", str(error), "correct K9_RATES: the API does not start with it")
    if not policies:
        return ok("rates", "none are set")
    rights = [each.right for each in policies]
    first = [f"{each.right} {each.quota:,} in {each.window_s:,} s" for each in policies]
    detail = f"of each caller, the first that it has: {', '.join(first)}"
    unused = [
        right
        for number, right in enumerate(rights)
        if right in rights[:number] or ANYONE in rights[:number]
    ]
    if unused:
        advice = f"move {', '.join(unused)} before {ANYONE}, or remove what is there twice"
        return warning("rates", f"{detail}; {', '.join(unused)} never applies", advice)
    return ok("rates", detail)


# --- the user pool --------------------------------------------------------------------------------


async def check_tokens(settings: Settings) -> list[Check]:
    """That the keys of the user pool can be fetched, and belong to the issuer."""
    auth = settings.auth
    issuer = auth.auth_issuer
    checks = []
    if issuer is None:
        advice = "set it to https://cognito-idp.REGION.amazonaws.com/POOL_ID"
        checks.append(failed("token issuer", "K9_AUTH_ISSUER is not set", advice))
    if not auth.auth_client_ids:
        advice = "set it to the app clients whose tokens are accepted, separated by commas"
        checks.append(failed("token clients", "K9_AUTH_CLIENT_IDS is not set", advice))
    url = auth.auth_jwks_url or (f"{issuer}/.well-known/jwks.json" if issuer else None)
    if url is None:
        return checks
    pool = (issuer or "").rpartition("/")[2]
    named = _POOL_IN_URL.search(url)
    if issuer is not None and named is not None and named[1] != pool:
        checks.append(
            failed(
                "token issuer",
                f"K9_AUTH_JWKS_URL is of another pool than K9_AUTH_ISSUER, {pool}",
                "set both for the same user pool: no token would be accepted",
            )
        )
    elif issuer is not None:
        checks.append(ok("token issuer", issuer))
    checks.append(await _check_keys(url))
    return checks


async def _check_keys(url: str) -> Check:
    parts = urlsplit(url)
    subject = "token keys"
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    advice = "set K9_AUTH_ISSUER (and K9_AUTH_JWKS_URL, if it is set) to the user pool's address"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(url, allow_redirects=False) as reply,
        ):
            if reply.status != _HTTP_OK:
                return failed(subject, f"{shown} answered with status {reply.status}", advice)
            body = await reply.content.read(_JWKS_BYTES_MAX)
        keys = json.loads(body)["keys"]
        usable = [each for each in keys if each.get("kty") == "RSA" and each.get("use") == "sig"]
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return failed(subject, f"{shown} does not answer: {type(error).__name__}", advice)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return failed(subject, f"{shown} did not answer with a key set", advice)
    if not usable:
        return failed(subject, f"{shown} has no RSA key for signatures", advice)
    return ok(subject, f"{len(usable)} at {shown}")
