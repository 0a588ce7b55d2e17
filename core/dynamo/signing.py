"""AWS Signature Version 4 of a request to DynamoDB.

botocore's signer takes the address and the headers apart again for each request, and derives the
key again, which takes longer than to send a small request. All of these stay the same here but the
time, the target and the body. A test compares signatures with botocore's.
"""

import hmac
from hashlib import sha256
from urllib.parse import quote, urlsplit

from botocore.credentials import ReadOnlyCredentials
from botocore.utils import normalize_url_path

_ALGORITHM = "AWS4-HMAC-SHA256"
_SERVICE = "dynamodb"
_CONTENT_TYPE = "application/x-amz-json-1.0"


class Signer:
    """Signs requests to one address in one region."""

    def __init__(self, url: str, region: str) -> None:
        """Takes the address that all requests go to, and the region that they name."""
        parts = urlsplit(url)
        self._host = parts.netloc.rpartition("@")[2]
        self._path = quote(normalize_url_path(parts.path), safe="/~")
        self._region = region
        self._key_of = ("", "")
        self._key = b""
        """Of the secret and the date in `_key_of`."""

    def headers(
        self, credentials: ReadOnlyCredentials, target: str, body: bytes, at: str
    ) -> dict[str, str]:
        """The headers of a request, signature and `Host` among them.

        `at` is the time of signing, in UTC: `20260131T235959Z`.
        """
        date, token = at[:8], credentials.token
        scope = f"{date}/{self._region}/{_SERVICE}/aws4_request"
        signed = "content-type;host;x-amz-date;x-amz-target"
        token_line = ""
        if token:
            signed = "content-type;host;x-amz-date;x-amz-security-token;x-amz-target"
            token_line = f"x-amz-security-token:{token}\n"
        request = (
            f"POST\n{self._path}\n\ncontent-type:{_CONTENT_TYPE}\nhost:{self._host}\n"
            f"x-amz-date:{at}\n{token_line}x-amz-target:{target}\n\n{signed}\n"
            f"{sha256(body).hexdigest()}"
        )
        text = f"{_ALGORITHM}\n{at}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        key = self._signing_key(credentials.secret_key, date)
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers = {
            "Host": self._host,
            "Content-Type": _CONTENT_TYPE,
            "X-Amz-Target": target,
            "X-Amz-Date": at,
            "Authorization": f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}",
        }
        if token:
            headers["X-Amz-Security-Token"] = token
        return headers

    def _signing_key(self, secret: str, date: str) -> bytes:
        """The key of a day, derived once."""
        if self._key_of != (secret, date):
            key = f"AWS4{secret}".encode()
            for part in (date, self._region, _SERVICE, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key_of, self._key = (secret, date), key
        return self._key
