"""The pseudo code of RFC 7396 on values, which what K9 answers is held against."""

from typing import Any


def merged(target: Any, patch: Any) -> Any:
    """The target with the patch applied."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
