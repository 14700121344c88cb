#!/usr/bin/env bash
# Starts a server by hand: the SuperLink on loopback and the proxy before it, until one of them
# ends or this is stopped. Settings: those of superlink.sh and proxy.sh.
#   FEDMITR_CERTIFICATES=certificates deploy/server.sh
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
loopback=${FEDMITR_LOOPBACK:-$PWD/loopback}
[ -e "$loopback/loopback.key" ] || "$here/certificates.sh" loopback "$loopback"

# The SuperLink waits for whoever follows a log, without end: not longer than ten seconds here.
end() {
  trap - EXIT INT TERM
  kill "${parts[@]}" 2>/dev/null || true
  for _ in {1..10}; do
    kill -0 "${parts[@]}" 2>/dev/null || break
    sleep 1
  done
  kill -KILL "${parts[@]}" 2>/dev/null || true
  wait
}
parts=()
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$here/superlink.sh" "$@" &
parts+=($!)
"$here/proxy.sh" &
parts+=($!)
wait -n
