import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.embedding_files import json_scanner
from core.embedding_files.file_input import open_input
from core.embedding_files.json_entries import ENTRY_BYTES_MAX, Entry, entries
from core.errors import FileError
from core.settings import Files

_ROWS = [
    {"id": "a", "x": [1, {"y": "]}{[,"}]},
    {"id": 'b"\\', "x": "\\"},
    {"id": "c\u00e9", "x": {}},
]


def _file(directory: Path, text: str | bytes) -> Path:
    path = directory / "data.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _entries(path: Path, entry_bytes_max: int = ENTRY_BYTES_MAX) -> Iterator[Entry]:
    with open_input(path, Files()) as file:
        yield from entries(file, entry_bytes_max)


def _read(path: Path) -> list[object]:
    return [json.loads(entry.text) for entry in _entries(path)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(_ROWS),
        json.dumps(_ROWS, indent=4),
        json.dumps({"Items": _ROWS, "Count": 3, "ScannedCount": 3, "ConsumedCapacity": None}),
        json.dumps({"Count": 3, "ScannedCount": 3, "Items": _ROWS}, indent=2),
        "\n".join(json.dumps(row) for row in _ROWS),
        "\r\n\n".join(json.dumps(row) for row in _ROWS) + "\r\n",
        "\ufeff" + json.dumps(_ROWS),
        "\ufeff" + "\n".join(json.dumps(row) for row in _ROWS),
        json.dumps({"Items": _ROWS[:2], "NextToken": "x"})
        + "\n"
        + json.dumps({"Items": _ROWS[2:]}),
        "[" + json.dumps(_ROWS[0]) + "\n" + json.dumps(_ROWS[1]) + json.dumps(_ROWS[2]) + ",]",
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 7, 1024])
def test_every_form_gives_the_same_rows(
    text: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the layout, and wherever a block of the file ends."""
    monkeypatch.setattr(json_scanner, "BLOCK_BYTES", block_bytes)
    found = list(_entries(_file(tmp_path, text)))
    assert [json.loads(entry.text) for entry in found] == _ROWS
    assert [entry.number for entry in found] == [1, 2, 3]
    assert found[-1].end <= (tmp_path / "data.json").stat().st_size


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=25)
@given(st.lists(st.dictionaries(st.text(), _VALUES)), st.booleans(), st.none() | st.integers(0, 3))
def test_any_array_of_objects_comes_apart(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[object],
    ascii_only: bool,  # noqa: FBT001 - hypothesis draws it
    indent: int | None,
) -> None:
    """Into just its objects, in order."""
    path = tmp_path_factory.mktemp("rows") / "data.json"
    path.write_text(json.dumps(rows, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    assert _read(path) == rows


def test_entries_say_the_line_that_they_begin_on(tmp_path: Path) -> None:
    """In an indented array as in lines."""
    indented = _file(tmp_path, json.dumps(_ROWS, indent=1))
    lines = indented.read_text().splitlines()
    assert [lines[entry.line - 1] for entry in _entries(indented)] == [" {"] * 3
    found = list(_entries(_file(tmp_path, '{"a": 1}\n\n{"b": 2}\n')))
    assert [entry.line for entry in found] == [1, 3]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "bad", ['{"id": "b, "x": 1}', '{"id": "b', '{"id": {"a": 1}', '{"id": 1]}', '{"id": 1}}', ":"]
)
def test_an_entry_that_is_not_closed_takes_no_other_along(
    bad: str, indent: int | None, tmp_path: Path
) -> None:
    """In an array with an entry a line, or indented: reading goes on with the next entry."""
    good = [json.dumps(row, indent=indent) for row in _ROWS]
    text = "[\n" + ",\n".join([good[0], bad, good[1], good[2]]) + "\n]\n"
    found: list[Entry] = []
    try:
        found.extend(_entries(_file(tmp_path, text)))
    except FileError as error:
        pytest.fail(str(error))
    whole = []
    for entry in found:
        try:
            whole.append(json.loads(entry.text))
        except ValueError:
            continue
    assert [row for row in _ROWS if row in whole] == _ROWS
    assert len(found) > len(whole)


def test_what_cannot_be_read_on_is_said_after_what_was_read(tmp_path: Path) -> None:
    """A file that was cut off gives its rows first."""
    cut = json.dumps(_ROWS)[:-5]
    found: list[Entry] = []
    with pytest.raises(FileError, match="entry 3 on, on line 1"):
        found.extend(_entries(_file(tmp_path, cut)))
    assert [json.loads(entry.text) for entry in found[:2]] == _ROWS[:2]
    assert found[2].problem == "is not closed before the file ends"
    with pytest.raises(FileError, match="without closing its array"):
        list(_entries(_file(tmp_path, "[" + json.dumps(_ROWS[0]))))


def test_a_scan_that_goes_on_elsewhere_is_told(tmp_path: Path) -> None:
    """Its rows are there, and the missing ones are an entry that does not hold."""
    text = json.dumps({"Items": _ROWS, "Count": 3, "NextToken": "abc"}, indent=1)
    *rows, last = _entries(_file(tmp_path, text))
    assert len(rows) == 3
    assert last.problem is not None
    assert "rows are missing" in last.problem


@pytest.mark.parametrize("form", ["[{}, {}]", "{}\n{}"])
def test_an_entry_over_the_limit_is_skipped(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being held in memory, and without those after it, where they have their own line."""
    monkeypatch.setattr(json_scanner, "BLOCK_BYTES", 100)
    long = json.dumps({"id": "x" * 5000})
    text = form.replace("{}", long, 1).replace(", ", ",\n").replace("{}", '{"id": "y"}')
    first, second = _entries(_file(tmp_path, text), 1000)
    assert first.problem == "is longer than 1000 bytes"
    assert json.loads(second.text) == {"id": "y"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'[{"a": 1}] x', "begins neither"),
        (b'{"Items": [{"a": 1}] x', "cannot be read after the items"),
    ],
)
def test_other_files_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    """With what is wrong, in a line."""
    with pytest.raises(FileError, match=words):
        list(_entries(_file(tmp_path, data)))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(FileError, match="there is no such file"):
        list(_entries(tmp_path / "none.json"))
