"""What is stored and sent of imports."""

from typing import Any, Final

import msgspec

from core.models import BadRow, Import, ImportParameters, ImportProgress, UploadTerms
from core.queue import ImportJob, deserialize, serialize
from core.repositories import imports
from core.results import Result
from tests.golden.format import Format, row

_ID: Final = "01a21eb4605588e8af5df56c4ce282a7"
_NOON: Final = "2026-11-27T12:00:00.000000Z"
_ONE: Final = "2026-11-27T13:00:00.000000Z"
_TRACE: Final = f"00-{'ab' * 16}-{'cd' * 8}-01"
_WAITING: Final = Import(
    _ID,
    "m-1",
    "waiting",
    _NOON,
    ImportParameters(f"environments/dev/imports/uploads/{_ID}", "l2", "id", "v", ("brand",)),
    UploadTerms(12, "ab" * 32),
    progress=ImportProgress("upload"),
    request_id="r",
    trace=_TRACE,
)
ENDED: Final = msgspec.structs.replace(
    _WAITING,
    status="failed",
    etag='"ab"',
    size_bytes=12,
    progress=ImportProgress("store", 3, 4, "rows"),
    position=3,
    rows_stored=2,
    rows_bad=1,
    bad_rows_key="k",
    fence=2,
    holder="ab",
    lease_until_ms=1_795_780_800_000,
    started_at=_NOON,
    ended_at=_ONE,
    error="cannot be read",
    faults=1,
    unreturned=1,
    generation=1_795_780_800_000_000,
)

FORMATS: Final[tuple[Format[Any], ...]] = (
    row("import", ENDED, imports.IMPORT_CODEC.encode, imports.decode),
    row("import-open", _WAITING, imports.open_row, imports.decode),
    row(
        "import-bad-rows",
        imports.BadRows(f"{_ID}#bad-rows", (BadRow(2, None, "is null"),)),
        imports.BAD_ROWS_CODEC.encode,
        imports.BAD_ROWS_CODEC.decode,
    ),
    row(
        "imports-of-model",
        imports.OpenImports("m-1#open", [_ID], 3),
        imports.OPEN_CODEC.encode,
        imports.OPEN_CODEC.decode,
    ),
    Format(
        "job-import",
        "msgpack",
        ImportJob(_ID, 2, _TRACE),
        lambda job: serialize({"a": [job]}),
        lambda data: msgspec.convert(deserialize(data)["a"][0], ImportJob),
    ),
)
RESULTS: Final[tuple[Result, ...]] = (ENDED,)
