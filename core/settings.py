"""All settings, read once from the environment, which nothing else reads.

The limits that the contract fixes are in `core.limits`, those that an operator may set are here.

A field `rows_max` of any group is the variable `K9_ROWS_MAX`; AWS, Redis and the tables have
customary names, such as AWS_ENDPOINT_URL_S3, REDIS_URL and DYNAMODB_USERS_TABLE. Credentials are
not here: they stay in AWS's own chain. `OTEL_*` is read by `core.tracing` and OpenTelemetry's SDK.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from core.errors import SettingsError
from core.limits import UPLOAD_BYTES_MAX

_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
_Positive = Annotated[int, Meta(ge=1)]
_NotNegative = Annotated[int, Meta(ge=0)]
_Seconds = Annotated[float, Meta(gt=0)]
_NotNegativeSeconds = Annotated[float, Meta(ge=0)]
_Port = Annotated[int, Meta(ge=0, le=65535)]

_SECRET = frozenset({"REDIS_URL", "K9_CURSOR_KEYS"})
"""Variables whose values never appear in an error."""


class Aws(msgspec.Struct, frozen=True):
    """Where AWS is, and how long to wait for it."""

    region: str = "us-east-1"
    """From AWS_REGION, else AWS_DEFAULT_REGION."""
    endpoint_url: str | None = None
    endpoint_url_dynamodb: str | None = None
    endpoint_url_s3: str | None = None
    bucket: str | None = None
    """The bucket of index versions; None stands for `k9-indexes-{environment}-{account}`."""
    pool_connections: _Positive = 64
    connect_timeout_s: _Seconds = 1.0
    read_timeout_s: _Seconds = 1.5
    attempts_max: _Positive = 3
    """Attempts per call, the first one included, in botocore's `standard` mode."""
    deadline_s: _Seconds = 2.0
    """Over all attempts of one DynamoDB call, where a client waits for the response."""
    patient_deadline_s: _Seconds = 60.0
    """The same in workers and imports, which read and write in bulk."""
    waits_out_throttling: bool = False
    """Whether a throttled call is retried with backoff until its deadline, beyond botocore's own
    attempts."""
    object_deadline_s: _Seconds = 60.0
    """Over one S3 request, of at most one part of a multipart transfer."""


class Tables(msgspec.Struct, frozen=True):
    """Names of the tables; None stands for `k9-{table}-{environment}`."""

    users_table: str | None = None
    reports_table: str | None = None
    embeddings_table: str | None = None
    models_table: str | None = None
    builds_table: str | None = None
    idempotency_table: str | None = None
    imports_table: str | None = None


class Auth(msgspec.Struct, frozen=True):
    """Which tokens are accepted.

    The issuer and the address of its keys are separate: on the embedded stack they differ.
    """

    auth_issuer: str | None = None
    auth_jwks_url: str | None = None
    auth_client_ids: tuple[str, ...] = ()
    """App clients whose tokens are accepted, separated by commas."""
    auth_resource_servers: tuple[str, ...] = ()
    """Resource servers of the pool, which the `aud` of a token may name as well."""
    auth_leeway_s: _NotNegative = 5
    auth_keys_refresh_s: _Seconds = 60.0
    """A revoked key is accepted for no longer than this."""
    auth_keys_keep_s: _Seconds = 86400.0
    """How long fetched keys are used while no new ones can be fetched."""
    auth_unknown_key_fetch_s: _Seconds = 60.0
    """Unknown key ids cause at most one fetch in this time."""
    auth_token_bytes_max: _Positive = 8192
    auth_cache_tokens: _Positive = 10_000


class Http(msgspec.Struct, frozen=True):
    """The API process."""

    host: str = "127.0.0.1"
    port: _Port = 3001
    api_processes: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes that answer on `port`, one a core. An index is in memory once for all of them. The
    limits of this group, and those of large searches in `Serving`, are each process's."""
    metrics_port: _Port = 3002
    """For operations: `/metrics`, `/health/live`, `/health/ready`, separate from clients'
    connections; 0 opens none."""
    cors_origins: tuple[str, ...] = ()
    concurrent_requests_max: _Positive = 512
    """Requests in flight that call DynamoDB. Of this and the following limits one caller may use as
    much as is left free, half of it if alone: over that is 429, and 503 where nothing is left."""
    memory_requests_max: _Positive = 512
    """Requests in flight that are answered from memory."""
    arriving_bodies_max: _Positive = 512
    """Requests whose body is still arriving; they do not count elsewhere."""
    watermark_waits_max: _Positive = 64
    """Searches that wait for their `min_watermark` to be visible."""
    buffered_bytes_max: _Positive = 256 * 1024 * 1024
    """Bytes of received bodies in memory, of all requests in flight."""
    body_bytes_max: _Positive = 96 * 1024 * 1024
    """Of any body. A batch of 1,000 x 4,096 numbers in JSON with all their digits takes 80 MB."""
    record_bytes_max: _Positive = 1024 * 1024
    """Of a body without vectors."""
    body_timeout_s: _Seconds = 60.0
    """For a request's body to arrive."""
    body_grace_s: _Seconds = 5.0
    """After this time a body must have arrived at `body_rate_min` or faster."""
    body_rate_min: _Positive = 4096
    """Bytes a second."""
    connections_max: _Positive = 8192
    """Open connections. At the limit an idle one is closed for a new one; if none is idle, the new
    one is refused."""
    connections_per_address_max: _Positive = 1024
    """The same for one client address. Of clients behind trusted proxies, requests in progress."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks (10.0.0.0/8) of proxies whose X-Forwarded-For is believed, separated by commas."""
    idle_timeout_s: _Seconds = 75.0
    """A connection without a request is closed after it: longer than a load balancer's minute."""
    header_timeout_s: _Seconds = 10.0
    """For a request's header, from the connection or the header's first byte."""
    write_timeout_s: _Seconds = 20.0
    """A client that reads a reply at less than 4 KiB a second for this long is disconnected."""
    unread_bytes_max: _Positive = 256 * 1024 * 1024
    """Of replies that clients have not read; over it the connection stalled longest is closed."""
    rates: tuple[str, ...] = ()
    """Requests that each caller may send, by right, separated by commas: `group:readers=100/60` is
    100 in 60 s. A right is `caller:SUB`, `group:NAME`, `scope:NAME` or `*`, and the first one that
    a caller has holds. Over all processes of the environment, and each one's while Valkey is away.
    """
    notice_s: Annotated[float, Meta(ge=0)] = 0.0
    """How long readiness fails before the port closes, for a load balancer to see it."""
    drain_s: _Seconds = 10.0
    event_streams_max: _Positive = 64
    """Streams of events of builds and imports, which do not count as requests. A caller over its
    share has its oldest one closed for a new one."""
    event_poll_s: _Seconds = 1.0
    """How often a build or an import is read while a stream follows it."""
    event_keepalive_s: _Seconds = 15.0
    """How often an idle stream sends a comment, so that no proxy closes it."""


class Records(msgspec.Struct, frozen=True):
    """Users, reports and idempotency keys."""

    preferences_bytes_max: _Positive = 64 * 1024
    preferences_levels_max: _Positive = 100
    favorites_max: _Positive = 1000
    favorites_bytes_max: _Positive = 160 * 1024
    """Of all ids of one report together: it and its stored result must fit an item of 400 KB."""
    idempotency_ttl_s: _Positive = 86400
    idempotency_lease_s: _Seconds = 30.0
    """A process that died in flight blocks a key for no longer than this."""
    idempotency_body_bytes_max: _Positive = 384 * 1000
    """A larger result is not stored: only lists of errors are, and a retry repeats them."""
    deletion_settle_s: _Seconds = 10.0
    """How long after its mark a user's reports are still searched for in the index."""


class Ingest(msgspec.Struct, frozen=True):
    """Writing and reading rows."""

    shards: Annotated[int, Meta(ge=1, le=256)] = 8
    """GSI partitions a new model version is spread over: 1,000 write units a second each."""
    batch_deadline_s: _Seconds = 20.0
    """For one request's whole batch, backoff for unprocessed rows included."""
    batch_concurrency: _Positive = 8
    """BatchWriteItem calls in flight for one batch."""
    model_cache_s: _Seconds = 5.0
    """How long a process writes to a model version by its record as it was read; the same in all of
    an environment, since the deletion of a model version waits that long."""
    write_settle_s: _Seconds = 10.0
    """How long after the last write to a model version is begun its rows may still arrive, and show
    in the table's index: its deletion waits that long."""


class Building(msgspec.Struct, frozen=True):
    """The worker and its builds."""

    lease_s: _Seconds = 20.0
    heartbeat_s: _Seconds = 5.0
    build_timeout_s: _Seconds = 3600.0
    build_attempts_max: _Positive = 3
    """Attempts of a build that may end in a fault; the last one fails it."""
    build_losses_max: _Positive = 5
    """Attempts whose worker may die; ends a build that kills its workers."""
    jobs_max: _Positive = 2
    """Builds that one worker runs concurrently."""
    reconcile_s: _Seconds = 5.0
    worker_metrics_port: _Port = 3003
    """On the same `host` as the API's; 0 opens none."""
    work_dir: Path = Path(".k9/work")
    index_bytes_max: _Positive = 4 * 1024**3
    """Memory that one index may take: over it the next smaller family is chosen."""
    columns_bytes_max: _Positive = 1024**3
    """Size of the attributes of one version; a build fails over it."""
    matrix_exact_rows_max: _Positive = 150_000
    """Up to here the matrix is exact; above it the index makes it, and its recall is measured."""
    index_threads: _NotNegative = 0
    """Threads of the build process; 0 is all cores."""
    watermark_lag_s: _Seconds = 60.0
    overlap_min: Annotated[float, Meta(ge=0, le=1)] = 0.3
    """Share of the nearest neighbours that a build must have in common with the one it replaces."""
    versions_kept: _Positive = 5
    """Published versions kept per model version; the current one always is."""
    version_grace_s: _NotNegativeSeconds = 600.0
    """How long an unneeded version stays: a process may be about to load it."""


class Imports(msgspec.Struct, frozen=True):
    """Imports through the API: their leases and attempts are as those of builds."""

    imports_max: _Positive = 1
    """Imports that one worker runs concurrently. While it runs as many builds as it may, it begins
    an import some seconds later, when it looks for what nobody has begun."""
    imports_open_max: _Positive = 10
    """Imports of one model version that may be open; a further one is refused."""
    import_bytes_max: Annotated[int, Meta(ge=1, le=UPLOAD_BYTES_MAX)] = 4 * 1024**3
    """Size of the object of one import, which a worker copies to its disk."""
    import_upload_grace_s: _NotNegativeSeconds = 60.0
    """How long after its time an upload may still arrive: S3 takes one that began in time."""


class Serving(msgspec.Struct, frozen=True):
    """The index in memory."""

    cache_dir: Path = Path(".k9/cache")
    refresh_s: _Seconds = 1.0
    """How often the current builds are read."""
    loaded_bytes_max: _Positive = 8 * 1024**3
    search_threads: _Positive = 2
    """Threads that run searches too long for the event loop."""
    large_searches_max: _Positive = 128
    """Such searches, queued or running."""
    search_queue_s: _Seconds = 10.0
    """How long such a search may be queued; then it is answered with 503."""
    hint_gather_s: _Seconds = 0.01
    """How long changed rows are collected before they are read."""
    poll_s: _Seconds = 30.0
    """How often the shards are polled for changes whose notification was lost; with 25 % jitter."""
    poll_overlap_s: _Seconds = 60.0
    """How far a poll overlaps the one before it: more than the lag of the table's index, and the
    difference of two clocks."""
    delta_rows_soft: _Positive = 5000
    """Rows changed since a build at which the next one is requested."""
    delta_rows_hard: _Positive = 20_000
    """Rows changed since a build at which only deletions are applied until the next one."""


class Files(msgspec.Struct, frozen=True):
    """Limits for files that the commands read, against decompression bombs."""

    file_expansion_max: _Positive = 200
    """How many times its compressed size a file, a member of an npz or a Parquet column may decode
    to, from 64 MiB on."""
    file_decoded_bytes_max: _Positive = 1024**4
    """Bytes that one compressed file may decode to."""
    file_spool_bytes_max: _Positive = 8 * 1024**3
    """Bytes of a temporary file: for Parquet and npz from a pipe or within gzip."""


class Settings(msgspec.Struct, frozen=True):
    """All settings. `from_env` is the only reader of the environment."""

    environment: _Name = "dev"
    aws: Aws = Aws()
    tables: Tables = Tables()
    auth: Auth = Auth()
    http: Http = Http()
    records: Records = Records()
    ingest: Ingest = Ingest()
    building: Building = Building()
    imports: Imports = Imports()
    serving: Serving = Serving()
    files: Files = Files()
    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_timeout_s: _Seconds = 2.0
    hint_timeout_s: _Seconds = 0.5
    """For publishing one change notification, for which no write waits, or enqueueing one job."""
    cursor_keys: tuple[str, ...] = ()
    """AES-256 keys in base64 that seal cursors: the first seals, all of them open."""
    cursor_ttl_s: _Positive = 86400
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    log_json: bool = True
    metrics_log_s: _NotNegativeSeconds = 0.0
    """How often some metrics are logged, for CloudWatch to make its own of the lines; 0: never."""
    loop_probe_s: _Seconds = 0.05
    """The interval of the event loop probe: a stall shows as its length less up to this much."""
    loop_stall_s: _Seconds = 0.5
    """A longer delay of the event loop is logged as a stall."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads and checks all settings.

        Raises:
            SettingsError: naming the variable and what is wrong with it.
        """
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION", "")
        settings: Self = _read(cls, {**environ, "AWS_REGION": region})
        return settings

    def patient(self) -> Self:
        """These settings for a process in which no client waits for a single call."""
        deadline_s = self.aws.patient_deadline_s
        aws = msgspec.structs.replace(
            self.aws,
            deadline_s=deadline_s,
            read_timeout_s=deadline_s / self.aws.attempts_max,
            waits_out_throttling=True,
        )
        return msgspec.structs.replace(self, aws=aws)

    def table(self, name: str) -> str:
        """The full name of a table: `users` → `k9-users-dev`, or its override."""
        override: str | None = getattr(self.tables, f"{name}_table")
        return override or f"k9-{name}-{self.environment}"


def _read(group: type[Any], environ: Mapping[str, str]) -> Any:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(group):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            values[field.name] = _read(field.type, environ)
            continue
        variable = _variable(field.name)
        text = environ.get(variable)
        if not text:
            continue
        try:
            values[field.name] = msgspec.convert(_split(field.type, text), field.type, strict=False)
        except msgspec.ValidationError as error:
            shown = variable if variable in _SECRET else f"{variable}={text!r}"
            raise SettingsError(f"{shown}: {error}") from None
    return group(**values)


def _variable(field: str) -> str:
    if field == "region" or field.startswith("endpoint_url"):
        return f"AWS_{field.upper()}"
    if field.endswith("_table"):
        return f"DYNAMODB_{field.upper()}"
    return "REDIS_URL" if field == "redis_url" else f"K9_{field.upper()}"


def _split(kind: Any, text: str) -> Any:
    if kind == tuple[str, ...]:
        return tuple(part for part in (p.strip() for p in text.split(",")) if part)
    if kind is Path:
        return Path(text)
    return text
