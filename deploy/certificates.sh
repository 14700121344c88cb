#!/usr/bin/env bash
# Makes a certificate authority and the SuperLink's TLS certificate.
#   deploy/certificates.sh FOLDER HOST...    HOST: each name or address that nodes will use
# FOLDER/ca.crt goes to every machine; FOLDER/ca.key signs and stays where it was made.
set -euo pipefail
umask 077

if [ $# -lt 2 ]; then
  echo "usage: deploy/certificates.sh FOLDER HOST..." >&2
  exit 2
fi
folder=$1
shift
mkdir -p "$folder"
cd "$folder"
if [ -e server.crt ]; then
  echo "$folder holds certificates already: remove them first, or choose another folder." >&2
  exit 1
fi

names=""
for host in "$@"; do
  if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then kind=IP; else kind=DNS; fi
  names="$names${names:+,}$kind:$host"
done

openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=fedmitr authority" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
  -keyout ca.key -out ca.crt 2>/dev/null
openssl req -newkey rsa:3072 -nodes -subj "/CN=$1" -keyout server.key -out server.csr 2>/dev/null
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names" > server.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 \
  -extfile server.ext -out server.crt 2>/dev/null
rm server.csr server.ext
chmod 644 ca.crt server.crt
echo "wrote ca.crt, ca.key, server.crt and server.key for $names to $folder"
