#!/usr/bin/env bash
# Status: executed, on one machine with a shell in place of ssh.
#
# A Ray cluster over SSH: jobs/cluster/ssh.sh up HEAD [WORKER …], then down with the same hosts.
# Every host needs the same Python environment at $MERGEVQ_VENV with mergevq's packages, $MERGEVQ_HOME as storage that all of them
# share, and open ports between them. The dashboard listens on the head's loopback alone: ssh -L 8265:localhost:8265 HEAD
set -euo pipefail

venv=${MERGEVQ_VENV:-/opt/mergevq}
home=${MERGEVQ_HOME:?set MERGEVQ_HOME to a folder that all hosts share}
ssh=${MERGEVQ_SSH:-ssh -o BatchMode=yes}
port=${MERGEVQ_RAY_PORT:-6379}
dashboard=${MERGEVQ_DASHBOARD_PORT:-8265}
folder=${MERGEVQ_RAY_FOLDER:-/tmp/ray}
token=$home/ray_token

on() { # HOST COMMAND: run it there, with token authentication and the settings that workers inherit
  $ssh "$1" "cd / && export PATH=$venv/bin:\$PATH MERGEVQ_HOME=$home RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0 && $2"
}

up() {
  local head=$1 address
  shift
  on "$head" "mkdir -p $home && test -s $token || (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end=\"\")' > $token)"
  address=${MERGEVQ_HEAD_ADDRESS:-$(on "$head" "hostname -I" | cut -d' ' -f1)}
  on "$head" "ray start --head --node-ip-address=$address --port=$port --dashboard-host=127.0.0.1 --dashboard-port=$dashboard --temp-dir=$folder ${MERGEVQ_HEAD_OPTIONS:-}" </dev/null
  for worker in "$@"; do
    on "$worker" "ray start --address=$address:$port ${MERGEVQ_WORKER_OPTIONS:-}" </dev/null
  done
  echo "up; from here: ssh -L $dashboard:localhost:$dashboard $head, then"
  echo "RAY_AUTH_TOKEN=\$(ssh $head cat $token) mergevq submit --address http://127.0.0.1:$dashboard --home $home -- train RECIPE data.path=/SHARED/IMAGES"
}

down() { # ends the Ray of these hosts; where several clusters share a host, MERGEVQ_DOWN says how to end this one
  for host in "$@"; do
    on "$host" "${MERGEVQ_DOWN:-ray stop}" </dev/null
  done
}

case ${1:-} in
  up | down) [ $# -ge 2 ] && "$@" ;;
  *) echo "usage: ssh.sh up|down HEAD [WORKER …]" >&2 && exit 2 ;;
esac
