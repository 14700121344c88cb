#!/usr/bin/env bash
# Makes certificates. The authority's key signs for every machine: it lives on a machine (or a
# disk) of its own, never where the SuperLink runs.
#   deploy/certificates.sh authority FOLDER                   there, once: ca.key and ca.crt
#   deploy/certificates.sh server AUTHORITY FOLDER HOST...    there: what goes to the server
#   deploy/certificates.sh loopback FOLDER                    on the server: for itself alone
# HOST: each name or address that nodes will use. FOLDER is made; one that holds certificates
# already is left as it is.
set -euo pipefail
umask 077

fail() {
  echo "certificates.sh: $1" >&2
  exit 1
}

usage() {
  sed -n '/^#   /s/^#   //p' "$0" >&2
  exit 2
}

# Says openssl's own reason in the same sentence: its last line, as a rule.
run_openssl() {
  local said
  said=$(openssl "$@" 2>&1 >/dev/null) || fail "openssl ${1} failed: ${said##*$'\n'}"
}

# Writes HOST as openssl's subjectAltName wants it, or says why it is none.
alternative_name() {
  local label='[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?' byte='(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])'
  local six='^([0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}$'
  if [[ $1 =~ ^($byte\.){3}$byte$ || ( $1 =~ $six && $1 != *:::* && $1 != *::*::* ) ]]; then
    echo "IP:$1"
  elif [[ $1 =~ ^$label(\.$label)*$ && ! $1 =~ ^[0-9.]+$ && ${#1} -le 253 ]]; then
    echo "DNS:$1"
  else
    fail "'${1//[^[:print:]]/?}' is neither a host name nor an address; give one as in superlink.example.org or 192.0.2.10, without port, each as a word of its own."
  fi
}

# Everything is made in a folder beside the target and moved when it is whole.
prepare() {
  folder=$1
  shift
  local name
  for name in "$@"; do
    [ ! -e "$folder/$name" ] || fail "$folder holds $name already; choose another folder, or move the old certificates away."
  done
  (umask 022 && mkdir -p -- "$folder") 2>/dev/null || fail "the folder '$folder' can't be made; choose one that $(id -un) may write."
  made=$(mktemp -d -- "$folder/.new-XXXXXX" 2>/dev/null) || fail "the folder '$folder' can't be written by $(id -un)."
  trap 'rm -rf -- "$made"; rmdir -- "$folder" 2>/dev/null || true' EXIT
}

finish() {
  chmod 644 -- "$made"/*.crt
  rm -f -- "$made"/*.csr "$made"/*.ext
  mv -- "$made"/* "$folder/"
  echo "wrote to $folder: $*"
}

make_authority() {
  prepare "$1" ca.key ca.crt
  run_openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=fedmitr authority" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout "$made/ca.key" -out "$made/ca.crt"
  finish "ca.key (stays here, offline), ca.crt (goes to the server and every node)"
}

make_server() {
  local authority=$1 target=$2 host names="" name
  shift 2
  for name in ca.crt ca.key; do
    [ -r "$authority/$name" ] || fail "there is no $name that $(id -un) can read in '$authority'; make the authority first: deploy/certificates.sh authority FOLDER."
  done
  for host in "$@"; do
    name=$(alternative_name "$host") || exit 1
    names="$names${names:+,}$name"
  done
  prepare "$target" ca.crt server.crt server.key
  run_openssl req -newkey rsa:3072 -nodes -subj "/CN=fedmitr server" -keyout "$made/server.key" -out "$made/server.csr"
  printf '%s\n' "subjectAltName=$names" "extendedKeyUsage=serverAuth" "basicConstraints=critical,CA:FALSE" \
    "keyUsage=critical,digitalSignature,keyEncipherment" "authorityKeyIdentifier=keyid" > "$made/server.ext"
  run_openssl x509 -req -in "$made/server.csr" -CA "$authority/ca.crt" -CAkey "$authority/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days 825 -extfile "$made/server.ext" -out "$made/server.crt"
  cp -- "$authority/ca.crt" "$made/"
  finish "ca.crt, server.crt and server.key for $names, valid for 825 days"
}

# The SuperLink's own pair, for connections that never leave the server: a ServerApp, which can
# read it, has no use for it elsewhere, and the one that nodes trust stays with the proxy.
make_loopback() {
  prepare "$1" loopback.crt loopback.key
  run_openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=fedmitr loopback" \
    -addext "subjectAltName=IP:127.0.0.1,DNS:localhost" -addext "extendedKeyUsage=serverAuth" \
    -keyout "$made/loopback.key" -out "$made/loopback.crt"
  finish "loopback.crt, loopback.key"
}

command -v openssl >/dev/null || fail "openssl isn't installed; install the package of that name."
case "${1:-} $#" in
  "authority 2") make_authority "$2" ;;
  "loopback 2") make_loopback "$2" ;;
  "server "[0-3]) usage ;;
  "server "*) make_server "${@:2}" ;;
  *) usage ;;
esac
