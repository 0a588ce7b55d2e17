"""Valid identifiers: product ids, report ids and model versions."""

import re
import unicodedata

from core.errors import FieldError, Invalid
from core.limits import PRODUCT_ID_BYTES_MAX

REPORT_ID = r"[A-Za-z0-9_-][A-Za-z0-9._~-]{0,127}"
"""The pattern of report ids. New ones are 32 hex digits; those of migrated reports stay as they
were, as long as they need no escaping in a path."""

MODEL_VERSION = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""The pattern of names of model versions."""

_REPORT_ID = re.compile(REPORT_ID, re.ASCII)
_MODEL_VERSION = re.compile(MODEL_VERSION, re.ASCII)


def product_id_problem(product_id: str) -> str | None:
    """Why this is not a valid product id; None where it is."""
    try:
        size = len(product_id.encode())
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape
        return "is not valid Unicode"
    if not size or not product_id.strip():
        return "is blank"
    if size > PRODUCT_ID_BYTES_MAX:
        return f"has {size} bytes, over the limit of {PRODUCT_ID_BYTES_MAX}"
    if product_id in {".", ".."}:
        return "cannot be '.' or '..', which URLs drop"
    if not product_id.isprintable() and any(unicodedata.category(c) == "Cc" for c in product_id):
        return "has a control character"
    return None


def validate_product_id(product_id: str) -> None:
    """Checks one product id.

    Raises:
        Invalid: saying what is wrong with it.
    """
    problem = product_id_problem(product_id)
    if problem:
        raise Invalid.of(FieldError("product_id", problem))


def is_report_id(text: str) -> bool:
    """Whether a report may have this id."""
    return bool(_REPORT_ID.fullmatch(text))


def validate_model_version(model_version: str) -> None:
    """Checks the name of a model version.

    Raises:
        Invalid: saying what a valid one is.
    """
    if not _MODEL_VERSION.fullmatch(model_version):
        problem = "takes 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit"
        raise Invalid(f"a model version {problem}", (FieldError("model_version", problem),))
