#!/usr/bin/env bash
# Starts a node that trains on its own data, until it is stopped. Settings come from the
# environment (deploy/supernode.env is an example):
#   FEDMITR_SUPERLINK  host:port that the server's proxy listens on
#   FEDMITR_CA         the authority's ca.crt
#   FEDMITR_KEY        this node's private key, whose public half is registered
#   FEDMITR_CLIENT     this node's name in tables and reports, the same in every run
#   FEDMITR_DATA       its images: a folder class/image, or a parquet file or folder of them
#   FEDMITR_SOURCE     image-folder (default) or parquet
#   FEDMITR_MODELS     folder where it keeps the global model that a run sends it (default: nowhere)
#   FEDMITR_SECONDS    longest training on this machine, 0 for no limit (default: the run's own)
#   FEDMITR_PORT       a free port on 127.0.0.1 for its own processes (default 9094)
#   FEDMITR_TRUSTED    file of those who sign apps: no other app runs here (default: none, any does)
set -euo pipefail
umask 077

fail() {
  echo "supernode.sh: $1" >&2
  exit 1
}

for name in FEDMITR_SUPERLINK FEDMITR_CA FEDMITR_KEY FEDMITR_CLIENT FEDMITR_DATA; do
  [ -n "${!name:-}" ] || fail "$name isn't set; deploy/supernode.env shows what a node needs."
done
for file in "$FEDMITR_CA" "$FEDMITR_KEY" "$FEDMITR_DATA" ${FEDMITR_TRUSTED:+"$FEDMITR_TRUSTED"}; do
  [ -e "$file" ] || fail "$file doesn't exist, or lies where $(id -un) may not look."
  [ -r "$file" ] || fail "$file can't be read by $(id -un)."
done
# They become words of a configuration in quotes.
for name in FEDMITR_CLIENT FEDMITR_DATA FEDMITR_SOURCE FEDMITR_MODELS; do
  [[ ${!name:-} != *[\"\\$'\n']* ]] || fail "$name holds a quote, a backslash or a line's end; give it a name without."
done
[[ ${FEDMITR_SECONDS:-0} =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "FEDMITR_SECONDS is '$FEDMITR_SECONDS'; give a number of seconds, or 0 for no limit."
trusted=()
if [ -n "${FEDMITR_TRUSTED:-}" ]; then
  # Flower takes a file that names nobody as one that trusts everybody.
  grep -q 'ssh-ed25519 ' "$FEDMITR_TRUSTED" || fail "$FEDMITR_TRUSTED names no ssh-ed25519 key; a line is: name: 'ssh-ed25519 AAAA...'"
  trusted=(--trusted-entities "$FEDMITR_TRUSTED")
fi
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
own="client-key=\"$FEDMITR_CLIENT\" data-source=\"${FEDMITR_SOURCE:-image-folder}\" data-path=\"$FEDMITR_DATA\""
if [ -n "${FEDMITR_MODELS:-}" ]; then own="$own model-dir=\"$FEDMITR_MODELS\""; fi
if [ -n "${FEDMITR_SECONDS:-}" ]; then own="$own max-seconds=$FEDMITR_SECONDS"; fi
exec flower-supernode "$@" \
  --superlink "$FEDMITR_SUPERLINK" --root-certificates "$FEDMITR_CA" \
  --auth-supernode-private-key "$FEDMITR_KEY" --host 127.0.0.1 --port "${FEDMITR_PORT:-9094}" \
  "${trusted[@]}" --node-config "$own"
