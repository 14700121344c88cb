#!/usr/bin/env bash
# Starts a node that trains on its own data, until it is stopped. Settings come from the
# environment (deploy/supernode.env is an example):
#   FEDMITR_SUPERLINK  host:port of the SuperLink
#   FEDMITR_CA         the authority's ca.crt
#   FEDMITR_KEY        this node's private key, whose public half is registered
#   FEDMITR_CLIENT     this node's name in tables and reports, the same in every run
#   FEDMITR_DATA       its images: a folder class/image, or a parquet file or folder of them
#   FEDMITR_SOURCE     image-folder (default) or parquet
#   FEDMITR_SECONDS    longest training on this machine, 0 for no limit (default: the run's own)
#   FEDMITR_PORT       a free port for its own processes (default 9094)
set -euo pipefail

: "${FEDMITR_SUPERLINK:?}" "${FEDMITR_CA:?}" "${FEDMITR_KEY:?}" "${FEDMITR_CLIENT:?}" "${FEDMITR_DATA:?}"
for file in "$FEDMITR_CA" "$FEDMITR_KEY" "$FEDMITR_DATA"; do
  [ -r "$file" ] || { echo "$file cannot be read by $(id -un)." >&2; exit 1; }
done
export FLWR_TELEMETRY_ENABLED=0
own="client-key=\"$FEDMITR_CLIENT\" data-source=\"${FEDMITR_SOURCE:-image-folder}\" data-path=\"$FEDMITR_DATA\""
if [ -n "${FEDMITR_SECONDS:-}" ]; then own="$own max-seconds=$FEDMITR_SECONDS"; fi
exec flower-supernode \
  --superlink "$FEDMITR_SUPERLINK" --root-certificates "$FEDMITR_CA" \
  --auth-supernode-private-key "$FEDMITR_KEY" --port "${FEDMITR_PORT:-9094}" \
  --node-config "$own" "$@"
