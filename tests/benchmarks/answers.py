"""Which version an answer is from: held against what each answers at rest, and against numpy."""

from collections import Counter
from itertools import combinations
from typing import Final

import msgspec
import numpy as np

from api.wire.search import IndexUsed
from tests.benchmarks.asking import Given, Hits, Question
from tests.benchmarks.published import unit
from tests.benchmarks.stock import Catalogue

_EXACT: Final = 1e-5
"""How far a score may be from numpy's."""


class Version(msgspec.Struct, frozen=True):
    """What one build is known to answer."""

    rows: Catalogue
    """What it answers from."""
    at_rest: list[Given]
    """To each question."""


def wrong_at_rest(versions: dict[str, Version], questions: list[Question]) -> list[str]:
    """Answers at rest whose scores are not those of the rows that their build has."""
    wrong = []
    for build_id, version in versions.items():
        for question, (index, hits) in zip(questions, version.at_rest, strict=True):
            off = _off(version.rows, question, hits)
            if index.build_id != build_id or not off < _EXACT:
                wrong.append(
                    f"at rest {build_id} answers {question.path} as {index.build_id}, "
                    f"with scores off by {off:.1e}"
                )
    return wrong


def wrong_under_load(
    versions: dict[str, Version], given: Counter[tuple[int, IndexUsed, Hits]]
) -> list[str]:
    """Answers that are not, whole, what the build that they name answers at rest."""
    wrong = []
    for (number, index, hits), count in given.items():
        version = versions.get(index.build_id)
        if version is not None and _same((index, hits), version.at_rest[number]):
            continue
        whose = [
            build_id for build_id, version in versions.items() if version.at_rest[number][1] == hits
        ]
        wrong.append(
            f"{count} answers to question {number} say they are of {index.build_id}, "
            f"and have the hits of {whose or 'no version'}"
        )
    return wrong


def telling(versions: dict[str, Version]) -> float:
    """Share of the questions whose answer tells any two versions apart by its hits."""
    lists = [[hits for _, hits in version.at_rest] for version in versions.values()]
    questions = list(zip(*lists, strict=True))
    apart = sum(all(a != b for a, b in combinations(answers, 2)) for answers in questions)
    return apart / len(questions)


def _off(rows: Catalogue, question: Question, hits: Hits) -> float:
    """How far scores are from numpy's at the most."""
    vector = rows[question.product_id] if question.vector is None else question.vector
    if not hits or any(product_id not in rows for product_id, _ in hits):
        return np.inf
    near = unit(np.stack([rows[product_id] for product_id, _ in hits]))
    exact = near @ unit(vector[None])[0]
    return float(np.abs(exact - [score for _, score in hits]).max())


def _same(one: Given, other: Given) -> bool:
    """But for how many changed rows were searched too: that grows while they are read."""
    return one[1] == other[1] and _steady(one[0]) == _steady(other[0])


def _steady(index: IndexUsed) -> IndexUsed:
    return msgspec.structs.replace(index, fresh=None)
