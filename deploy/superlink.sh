#!/usr/bin/env bash
# Starts the SuperLink on loopback, with TLS and node authentication, until it is stopped. Who
# reaches its port can start runs and register nodes: only deploy/proxy.sh is open to others.
# Settings come from the environment:
#   FEDMITR_LOOPBACK        folder that `deploy/certificates.sh loopback` made (default ./loopback)
#   FEDMITR_SUPERLINK_PORT  its port on 127.0.0.1 (default 8001)
#   FEDMITR_DATABASE        who is registered, and runs (default ./superlink.db): a restart forgets nobody
#   FEDMITR_APP             a signed app for nodes that run no other (default: none; README.md)
# Results go to the folder it is started in, unless output.run-dir is absolute.
set -euo pipefail
umask 077 # the database and run folders hold uploads, and those can be inverted into images

loopback=${FEDMITR_LOOPBACK:-$PWD/loopback}
database=${FEDMITR_DATABASE:-$PWD/superlink.db}
for file in "$loopback/loopback.crt" "$loopback/loopback.key"; do
  [ -r "$file" ] || { echo "superlink.sh: $file can't be read by $(id -un); make it with deploy/certificates.sh loopback FOLDER, and set FEDMITR_LOOPBACK to the folder." >&2; exit 1; }
done
[ ! -e "$database" ] || chmod go= -- "$database"
# Flower's older Control API would be a second port, open on every interface.
unset FLWR_INTERNAL_GRPC_CONTROL_API FLWR_INTERNAL_GRPC_FLEET_API
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
offer=()
if [ -n "${FEDMITR_APP:-}" ]; then offer=("$(dirname "${BASH_SOURCE[0]}")/signed_app.py" serve "$FEDMITR_APP" --); fi
# The last of two flags counts: what is added to the command opens nothing.
exec "${offer[@]}" flower-superlink "$@" \
  --database "$database" --host 127.0.0.1 --port "${FEDMITR_SUPERLINK_PORT:-8001}" \
  --ssl-ca-certfile "$loopback/loopback.crt" \
  --ssl-certfile "$loopback/loopback.crt" --ssl-keyfile "$loopback/loopback.key" \
  --enable-supernode-auth --disable-runtime-dependency-installation
