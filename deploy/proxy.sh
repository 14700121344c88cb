#!/usr/bin/env bash
# Starts the proxy that nodes talk to, until it is stopped: nginx with deploy/proxy.conf. Settings
# come from the environment:
#   FEDMITR_CERTIFICATES    folder with server.crt and server.key, which nodes check
#   FEDMITR_HOST            address to listen on (default 0.0.0.0; [::] for IPv6)
#   FEDMITR_PORT            port to listen on (default 8000)
#   FEDMITR_LOOPBACK        folder with the SuperLink's loopback.crt (default ./loopback)
#   FEDMITR_SUPERLINK_PORT  the SuperLink's port on 127.0.0.1 (default 8001)
#   FEDMITR_PROXY_STATE     folder for its own files (default ./proxy)
set -euo pipefail
umask 077

fail() {
  echo "proxy.sh: $1" >&2
  exit 1
}

certificates=${FEDMITR_CERTIFICATES:-}
loopback=${FEDMITR_LOOPBACK:-$PWD/loopback}
state=${FEDMITR_PROXY_STATE:-$PWD/proxy}
[ -n "$certificates" ] || fail "set FEDMITR_CERTIFICATES to the folder that holds server.crt and server.key."
PATH=$PATH:/usr/sbin:/sbin
command -v nginx >/dev/null || fail "nginx isn't installed; install it with your system's packages (Debian: nginx-light)."
for file in "$certificates/server.crt" "$certificates/server.key" "$loopback/loopback.crt"; do
  [ -r "$file" ] || fail "$file can't be read by $(id -un)."
done
openssl x509 -checkend 0 -noout -in "$certificates/server.crt" >/dev/null ||
  fail "$certificates/server.crt is no certificate, or ended: $(openssl x509 -enddate -noout -in "$certificates/server.crt" 2>&1 | head -n 1)."
openssl x509 -checkend 2592000 -noout -in "$certificates/server.crt" >/dev/null ||
  echo "proxy.sh: $certificates/server.crt ends within 30 days; make a new one and start the proxy again." >&2
mkdir -p -- "$state" || fail "the folder '$state' can't be made by $(id -un)."
chmod 700 -- "$state"

conf=$(<"$(dirname "${BASH_SOURCE[0]}")/proxy.conf")
put() {
  [[ $2 =~ ^[][A-Za-z0-9_./:\ -]*$ ]] || fail "'$2' has characters that nginx's configuration can't hold; use letters, digits, '.', '_', '-' and '/'."
  conf=${conf//"@$1@"/"$2"}
}
put HOST "${FEDMITR_HOST:-0.0.0.0}"
put PORT "${FEDMITR_PORT:-8000}"
put SUPERLINK_PORT "${FEDMITR_SUPERLINK_PORT:-8001}"
put CERTIFICATES "$(realpath -- "$certificates")"
put LOOPBACK "$(realpath -- "$loopback")"
put STATE "$(realpath -- "$state")"
# Started by root, nginx would otherwise give its workers to another account.
if [ "$(id -u)" = 0 ]; then conf=${conf//@USER@/user root;}; else conf=${conf//@USER@/}; fi
printf '%s\n' "$conf" > "$state/nginx.conf"
exec nginx -p "$state" -c "$state/nginx.conf" -e stderr
