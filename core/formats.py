"""Numbers of stored formats: what a release cannot read has a higher number than it knows.

Everything stored is of format 1 unless it says otherwise: a row by the attribute `format`, a
manifest and a backup by the field of that name. A release raises the number of what earlier ones
would read wrongly, and those refuse it and change nothing.

A process reads a model version's record before every write to it, and a record before it changes
it; but some rows are written unread. So a release that changes how rows are written also puts a row
named `k9/format` into the models table, with its number: processes that do not know it refuse all
work on the tables. No model version can have that name.
"""

from typing import Final

from core.errors import NewerFormat

ATTRIBUTE: Final = "format"
"""Of a row: a number; absent in format 1."""
ROWS: Final = 1
"""The highest format of rows, and of all tables, that this release reads."""
TABLES_ROW: Final = "k9/format"
"""Key of the row of the models table that has the format of all tables."""


def check_format(found: int, known: int, what: str) -> None:
    """Refuses a format that is not known.

    Raises:
        NewerFormat: a later release wrote it.
    """
    if found > known:
        raise NewerFormat(
            f"{what} has format {found}, and this release reads formats up to {known}: a later "
            "release wrote it. Upgrade K9 to that release; nothing was changed"
        )
