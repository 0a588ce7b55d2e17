"""Prices of AWS in us-east-1, in US dollars, without free tiers, discounts and taxes.

They are as AWS published them in July 2025 (aws.amazon.com/SERVICE/pricing), and are not fetched:
compare them before a decision that depends on one. A month has 730 hours, a GB is 2^30 bytes.
"""

from typing import Final

AS_OF: Final = "2025-07"
REGION: Final = "us-east-1"
HOURS_A_MONTH: Final = 730
DAYS_A_MONTH: Final = HOURS_A_MONTH / 24
GB: Final = 1024**3

# --- DynamoDB, standard table class ---------------------------------------------------------------

DYNAMODB_WRITE_UNIT: Final = 0.625e-6
"""On demand: a write of up to 1 KB; two in a transaction."""
DYNAMODB_READ_UNIT: Final = 0.125e-6
"""On demand: a consistent read of up to 4 KB, or an eventually consistent one of 8 KB."""
DYNAMODB_WRITE_UNIT_HOUR: Final = 0.00065
"""Provisioned: one write unit a second, for an hour."""
DYNAMODB_READ_UNIT_HOUR: Final = 0.00013
DYNAMODB_GB_MONTH: Final = 0.25
DYNAMODB_RECOVERY_GB_MONTH: Final = 0.20
"""Point-in-time recovery, by the size of the table without its indexes."""

# --- S3, standard class ---------------------------------------------------------------------------

S3_GB_MONTH: Final = 0.023

# --- compute, memory, network ---------------------------------------------------------------------

FARGATE_VCPU_HOUR: Final = 0.04048
"""Linux on x86."""
FARGATE_GB_HOUR: Final = 0.004445
FARGATE_DISK_GB_HOUR: Final = 0.000111
"""Of ephemeral storage above the first 20 GB."""
VALKEY_NODE_HOUR: Final = {"cache.t4g.micro": 0.0128, "cache.t4g.small": 0.0256}
LOAD_BALANCER_HOUR: Final = 0.0225
LOAD_BALANCER_UNIT_HOUR: Final = 0.008
