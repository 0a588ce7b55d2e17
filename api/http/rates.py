"""Rates of requests, and what answers say of them.

`RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers-11: lists of
structured fields, here with one policy, named by the right that it goes with.
"""

from api import metrics
from api.http.context import RequestContext
from core.errors import OverRate
from core.rates import RateLimiter


async def check_rate(context: RequestContext, rates: RateLimiter) -> None:
    """Counts a request of its caller, and notes what the answer says of the rate.

    Raises:
        OverRate: the caller is over it.
    """
    policy = rates.policy_of(context.caller.rights)
    if policy is None:
        return
    verdict = await rates.take(policy, context.caller.user_id)
    name = f'"{policy.right}"'
    context.rate_headers = (
        (b"ratelimit-policy", f"{name};q={policy.quota};w={policy.window_s}".encode()),
        (b"ratelimit", f"{name};r={verdict.left};t={verdict.reset_s}".encode()),
    )
    if not verdict.allowed:
        metrics.SHED.labels("requests", "rate").inc()
        raise OverRate(policy.quota, policy.window_s, verdict.reset_s)
