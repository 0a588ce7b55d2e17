"""The limits that the contract fixes. Those that an operator may set are in `core.settings`."""

from typing import Final

DIMENSION_MAX: Final = 4096
PRODUCT_ID_BYTES_MAX: Final = 512
BATCH_ROWS_MAX: Final = 1000
K_MAX: Final = 1000
VECTORS_MAX: Final = 256
VECTORS_TIMES_K_MAX: Final = 10_000
EXCLUDE_MAX: Final = 1000
PAGE_ROWS_MAX: Final = 100
BUILD_ID_CHARACTERS_MAX: Final = 64
FILE_URL_S: Final = 300
"""For which the address of a file in an answer is good."""
UPLOAD_S: Final = 900
"""For which an address to upload an object to is good."""
UPLOADS_KEPT_S: Final = 7 * 86_400
"""An uploaded object is removed after it."""
UPLOAD_BYTES_MAX: Final = 5 * 1024**3
"""The largest object that S3 takes in one request."""
BAD_ROWS_MAX: Final = 1000
"""Bad rows of an import that are in its answer; all of them are in a file."""
OBJECT_KEY_BYTES_MAX: Final = 1024
"""Of a key in a bucket."""
COLUMN_CHARACTERS_MAX: Final = 256
RECALL_MIN: Final = 0.5
RECALL_MAX: Final = 1.0
MATRIX_K_MAX: Final = 1000
NAME_CHARACTERS_MAX: Final = 200
EMAIL_CHARACTERS_MAX: Final = 254
URL_CHARACTERS_MAX: Final = 2048
TITLE_CHARACTERS_MAX: Final = 500
AUTHOR_CHARACTERS_MAX: Final = 500
REFERENCE_CHARACTERS_MAX: Final = 2000
ATTRIBUTES_MAX: Final = 64
"""Names of one embedding's attributes."""
ATTRIBUTES_BYTES_MAX: Final = 8192
"""Of all attributes of one embedding, as compact JSON in UTF-8."""
ATTRIBUTE_CHARACTERS_MAX: Final = 256
"""Of a string, alone or in a list."""
ATTRIBUTE_LIST_MAX: Final = 64
"""Strings of a list."""
FILTER_LEVELS_MAX: Final = 16
FILTER_BYTES_MAX: Final = 4 << 20
"""Of a filter as it is sent: with all its characters escaped, the largest one takes 3 MB."""
FILTER_CONDITIONS_MAX: Final = 256
FILTER_VALUES_MAX: Final = 1000
"""Of all conditions of a filter together."""
EXAMPLES_MAX: Final = 100
"""Positive and negative ones of a recommendation together."""
GROUP_SIZE_MAX: Final = 10
BOOSTS_MAX: Final = 8
BOOST_MAX: Final = 1e18
"""Largest size of the weight and bounds of a boost: a score is finite whatever it adds."""
