"""`k9 import`."""

import sys
from pathlib import Path
from time import monotonic

import click

from core.errors import FileError
from core.models import Metric
from deploy.cli import environment
from deploy.errors import CommandError

BAD_ROWS_SHOWN = 50


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model version, such as minilm-l6-v2.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "ip", "l2"]),
    help="Set by the first write of a model version, and fixed from then on; cosine by default.",
)
@click.option("--id-column", metavar="NAME", help="Of the ids, unless it is product_id.")
@click.option("--vector-column", metavar="NAME", help="Of the vectors, unless it is vector.")
@click.option(
    "--attributes",
    metavar="A,B",
    default="",
    help="Columns, arrays or members to store as attributes, under their own names.",
)
@environment.async_command
async def command(
    file: Path,
    model: str,
    metric: Metric | None,
    id_column: str | None,
    vector_column: str | None,
    attributes: str,
) -> None:
    """Stores the embeddings of FILE: Parquet, .npz or JSON.

    Parquet has the columns `product_id` and `vector`, .npz the arrays `product_ids` and `vectors`,
    a JSON line is {"product_id": "...", "vector": [...]}. The format is detected from the first
    bytes of FILE, which may be gzip, and JSON may be UTF-16; `-` is standard input. Ids that are
    integers or UUIDs are stored as text. Running it again is safe. Rows that are not valid are
    reported on standard error, and all others are stored.

    With `--attributes`, each row's attributes become those that are named, of text, numbers,
    booleans or lists of text; a row has none of a name where it is null, missing, or NaN in .npz.
    Without it, attributes stay as they are.
    """
    # Imported here, so that `k9 import --help` answers at once.
    from core.embedding_files.columns import Columns, parse_attributes  # noqa: PLC0415
    from core.embedding_files.importing import BatchResult, import_file  # noqa: PLC0415
    from core.embedding_files.readers import open_embeddings  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    settings, _ = environment.enter()
    began = monotonic()
    stored = bad = read = 0
    columns = Columns(id_column, vector_column, parse_attributes(attributes))
    with open_embeddings(file, columns, settings.files) as reader, progress_display() as display:
        name = reader.short_name
        unit = "B" if reader.unit == "bytes" else ""

        def on_batch(batch: BatchResult) -> None:
            nonlocal stored, bad, read
            stored += batch.stored
            read += batch.units
            for row in batch.bad:
                bad += 1
                if bad <= BAD_ROWS_SHOWN:
                    product = "" if row.product_id is None else f" ({row.product_id[:80]!r})"
                    sys.stderr.write(f"{name}:{row.number}{product}: {row.reason}\n")
            rows = f"{stored + bad:,} rows"
            display.update(f"importing {name}", read, reader.units, unit=unit, note=rows)

        async with environment.open_resources(settings) as resources:
            try:
                await import_file(
                    resources.embedding_service, model, reader, metric=metric, on_batch=on_batch
                )
            except FileError as error:
                raise FileError(f"{error} (stored before that: {stored:,})") from error
    for note in reader.notes:
        sys.stderr.write(f"{name}: {note}\n")
    if bad > BAD_ROWS_SHOWN:
        sys.stderr.write(f"… and {bad - BAD_ROWS_SHOWN:,} more\n")
    if not stored and not bad:
        raise CommandError(f"{reader.name}: has no rows")
    if bad:
        raise CommandError(f"{bad:,} rows are not valid; {stored:,} were stored")
    click.echo(f"{stored:,} embeddings of {model} stored in {monotonic() - began:.1f} s")
