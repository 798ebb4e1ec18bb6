#!/usr/bin/env bash
# Runs nginx with nchan as a broadcast server: fills in nginx.conf.in beside it and becomes nginx.
#
# usage: run.sh ROOT HOST PORT
#
# ROOT is where the Debian packages are unpacked. Ends on SIGTERM, as nginx does.
set -euo pipefail
root=$1 host=$2 port=$3
folder=$(cd -- "$(dirname -- "$0")" && pwd)

# nchan insists on a folder of its own at start, where only root could make one, and takes its
# directive for it (nchan_message_temp_path) for a duplicate. So its copy here has another folder
# compiled in, of as many letters, below the prefix (-p). Nothing is ever written to it.
LC_ALL=C sed 's|/var/lib/nginx/body|nchan-messages-temp|' \
  "$root/usr/lib/nginx/modules/ngx_nchan_module.so" >"$folder/ngx_nchan_module.so"

sed -e "s|@HOST@|$host|" -e "s|@PORT@|$port|" -e "s|@FOLDER@|$folder|" \
  -e "s|@DESCRIPTORS@|$(ulimit -n)|" "$folder/nginx.conf.in" >"$folder/nginx.conf"
exec "$root/usr/sbin/nginx" -p "$folder/" -c "$folder/nginx.conf"
