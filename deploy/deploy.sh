#!/usr/bin/env bash
# Deploys K9 into the AWS account of your credentials:
#
#   deploy/deploy.sh --environment dev --user-pool-id us-east-1_XXXXXXXXX
#
# --help lists the options. What it does is `k9 deploy`; this file sees to an installed K9 first.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -x $root/.venv/bin/k9 ]]; then
    make --directory "$root" .venv/.runtime >&2
fi
# A `k9 dev` that runs in the caller's directory is not meant: this is for an account.
export K9_STACK=${K9_STACK-off}
exec "$root/.venv/bin/k9" deploy "$@"
