"""AWS's configuration file, where variables leave something open."""

from botocore.exceptions import BotoCoreError
from botocore.session import Session

from deploy.errors import CommandError


def read_region() -> str | None:
    """The region of the chosen profile; None where it has none.

    Raises:
        CommandError: the file cannot be read, or has no such profile.
    """
    try:
        region: str | None = Session().get_config_variable("region")
    except BotoCoreError as error:
        raise CommandError(str(error)) from error
    return region
