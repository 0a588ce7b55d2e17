"""`deploy/deploy.sh` against the embedded AWS, the way of an environment: `make deploy-test`.

What the emulator lacks is left out as in `test_deploy.py`.
"""

from deploy.aws.tables import describe_tables
from tests.e2e.test_deploy import CERTIFICATE, Account, account

__all__ = ["account"]
"""A fixture, by being named here."""


async def test_an_environment_is_created_changed_and_deleted(account: Account) -> None:
    """The way of an environment: dry run, creation, again, a new image, deletion; data at last."""
    environment = account.settings.environment
    _, said = await account.deploy("example/k9:1", "--dry-run")
    assert f"k9-base-{environment} to create:" in said
    assert "add    EmbeddingsTable (AWS::DynamoDB::Table)" in said
    assert said.endswith("nothing was changed\n")
    assert [await account.stack_status(name) for name in ("base", "data", "service")] == [None] * 3

    url, _ = await account.deploy("example/k9:1")
    assert url == "https://k9.example.com\n"
    assert await account.images() == {"api": "example/k9:1", "worker": "example/k9:1"}
    assert all(table.deletion_protection for table in await describe_tables(account.settings))

    _, said = await account.deploy("example/k9:1")
    for name in ("base", "data", "service"):
        assert f"k9-{name}-{environment}: no change" in said

    _, said = await account.deploy("example/k9:2")
    assert await account.images() == {"api": "example/k9:2", "worker": "example/k9:2"}
    assert said.index("WorkerService: update complete") < said.index("ApiService: update complete")

    # Without the options: they keep the values of the last run.
    await account.deploy_sh(
        *("--environment", environment, "--user-pool-id", account.pool_id),
        *("--image", "example/k9:3", "--no-smoke-test", "--no-alarms"),
    )
    assert await account.images() == {"api": "example/k9:3", "worker": "example/k9:3"}

    _, said = await account.deploy_sh("--environment", environment, "--delete")
    assert [await account.stack_status(name) for name in ("base", "service")] == [None] * 2
    assert {table.status for table in await describe_tables(account.settings)} == {"ACTIVE"}
    # Deployed again, it takes up the tables that it left.
    await account.deploy("example/k9:1")

    delete_all = ("--environment", environment, "--delete", "--delete-data", environment)
    _, said = await account.deploy_sh(*delete_all, ok=False)
    assert "is protected against deletion" in said
    assert await account.stack_status("service") is not None
    await account.deploy("example/k9:1", "--parameter", "DeletionProtection=false")
    await account.deploy_sh(*delete_all)
    assert {table.status for table in await describe_tables(account.settings)} == {"MISSING"}
    assert await account.stack_status("data") is None


async def test_wrong_options_change_nothing(account: Account) -> None:
    """Each is one line that says what to do."""
    environment = account.settings.environment
    base = ("--environment", environment, "--image", "example/k9:1")
    pool = ("--user-pool-id", account.pool_id)
    tls = ("--certificate-arn", CERTIFICATE)
    for options, expected in {
        base: "Missing option '--user-pool-id'",
        (*base, *pool): "needs TLS: give --certificate-arn",
        (*base, *pool, *tls): "needs --domain",
        (*base, "--user-pool-id", "us-east-1_nosuchone", *tls, "--domain", "a.b"): "no user pool",
        (*base, *pool, *tls, "--domain", "a.b", "--parameter", "Nothing=1"): "parameter Nothing",
        (*base, *pool, "--vpc-id", "vpc-1"): "go together",
        (*base, "--delete", "--delete-data", "another"): "names the environment",
        (*base, "--delete-data", environment): "goes with --delete",
    }.items():
        _, said = await account.deploy_sh(*options, ok=False)
        assert expected in said.splitlines()[-1]
    assert await account.stack_status("base") is None
