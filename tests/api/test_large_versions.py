"""ETags of migrated reports: whatever number its version is, a report matches its own."""

import msgspec
import pytest

from api.http.parameters import matching_versions
from core.dynamo.items import number_text
from core.errors import NumberOutOfRange
from core.models import VERSION_MAX, Report, next_version
from tests.api.conftest import Service
from tests.api.people import person
from tests.api.serving import assert_problem

MOMENT = "2025-01-01T00:00:00.000000Z"
VERSIONS = (
    *(10**17, 10**18 - 1, 10**18, 1714557600123456789, 2**63, 2**64 + 1, 10**37),
    *(VERSION_MAX - 1, VERSION_MAX, VERSION_MAX + 1, 10**50, 12 * 10**124),
)
"""The last three as older versions could store them."""


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_report_matches_its_own_etag(service: Service, version: int) -> None:
    """Patched twice under it, never under an earlier one, and deleted."""
    async with person(service) as ada:
        report = Report(f"v{version}", ada.sub, "t", MOMENT, MOMENT, version=version)
        await service.resources.reports.create_report(report)
        path = f"/reports/{report.id}"
        tags = [(await ada.client.get(path)).headers["etag"]]
        assert tags == [f'"{version}"']
        for number in range(3):
            patch = {"title": f"t{number}"}
            reply = await ada.client.patch(path, json=patch, headers={"if-match": tags[-1]})
            assert reply.status_code == 200, reply.text
            tags.append(reply.headers["etag"])
        for tag in tags[:-1]:
            for attempt in (
                ada.client.patch(path, json={"title": "x"}, headers={"if-match": tag}),
                ada.client.delete(path, headers={"if-match": tag}),
            ):
                assert_problem(await attempt, 412, "stale")
        assert len({*tags}) == len(tags)
        gone = await ada.client.delete(path, headers={"if-match": f"{tags[0]}, {tags[-1]}"})
        assert gone.status_code == 204


@pytest.mark.parametrize(
    "tag",
    [
        *('"0"', '"01"', '"1.0"', '"1e3"', '"-1"', 'W/"1"', f'"{"9" * 8000}"'),
        *(f'"{10**38 + 1}"', f'"{"1" * 39}"', f'"{10**126}"'),
    ],
)
async def test_tags_of_other_makes_match_nothing(service: Service, tag: str) -> None:
    """Of any length: stale, and no error."""
    async with person(service) as ada:
        path = f"/reports/{(await ada.report())['id']}"
        for attempt in (
            ada.client.patch(path, json={"title": "x"}, headers={"if-match": tag}),
            ada.client.delete(path, headers={"if-match": tag}),
        ):
            assert_problem(await attempt, 412, "stale")


def test_every_tag_that_matches_is_a_number_of_dynamodbs() -> None:
    """And every version that could be stored matches."""
    for version in VERSIONS:
        assert matching_versions(f'"{version}"') == frozenset({version})
        assert number_text(version)
    with pytest.raises(NumberOutOfRange):
        number_text(VERSION_MAX + 2)


def test_the_count_goes_on_after_the_largest() -> None:
    """From numbers that can be stored and were not had."""
    assert next_version(1) == 2
    assert next_version(VERSION_MAX - 1) == VERSION_MAX
    after = {next_version(version) for version in (VERSION_MAX, VERSION_MAX + 1, 10**50)}
    assert len(after) == 3
    assert all(1 <= version < VERSION_MAX for version in after)
    assert msgspec.json.encode(max(after))
