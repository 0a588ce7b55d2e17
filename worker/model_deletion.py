"""Removes a model version that an operator deleted, a round at a time.

A round ends where there is something to wait for; the reconciler begins the next one.
"""

from core import telemetry
from core.errors import K9Error
from core.models import Model
from core.resources import Resources

_log = telemetry.logger(__name__)


async def delete_model(resources: Resources, model: Model) -> None:
    """One round over a marked model version; what fails is left to the next one."""
    try:
        await resources.model_deletions.round(model)
    except K9Error as error:
        _log.warning("deletion put off", model_version=model.model_version, reason=str(error))
