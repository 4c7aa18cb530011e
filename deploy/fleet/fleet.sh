#!/usr/bin/env bash
# A whole mesh on this machine, each part a process: etcd, the control plane, the bank's three services with their
# sidecars, transfers twice, and a stand-by. `up` starts what does not run and leaves it up, `down` ends all of it, `status`
# says what runs. Everything it writes is in the directory of FLEET_DIR.
set -euo pipefail
cd "$(dirname "$0")/../.."

dir=${FLEET_DIR:-/tmp/txmesh-fleet}
bin=$PWD/bin
etcd_port=12379 plane=127.0.0.1:15810 plane_api=127.0.0.1:15811
# name | service | port of the application | base of the sidecar's ports: inbound, api, peer, accounts, savings
members=(
  "accounts   | accounts  | 17001 | 17100"
  "savings    | savings   | 17002 | 17200"
  "transfers1 | transfers | 17003 | 17300"
  "transfers2 | transfers | 17004 | 17400"
)

fail() { echo "fleet: $*" >&2; exit 1; }
alive() { [[ -f $dir/$1.pid ]] && kill -0 "$(<"$dir/$1.pid")" 2>/dev/null; }

# start NAME COMMAND...: in the background, its output in NAME.log
start() {
  local name=$1
  shift
  if alive "$name"; then
    return 0
  fi
  setsid nohup "$@" >>"$dir/$name.log" 2>&1 </dev/null &
  echo $! >"$dir/$name.pid"
}

# answers NAME URL [curl options]: waits until the part serves
answers() {
  local name=$1 url=$2 i
  shift 2
  for ((i = 0; i < 150; i++)); do
    curl -sf -o /dev/null "$@" "$url" && { echo "  $name: up"; return 0; }
    alive "$name" || { tail -n 5 "$dir/$name.log" >&2; fail "$name has ended; the whole log is $dir/$name.log"; }
    sleep 0.2
  done
  tail -n 5 "$dir/$name.log" >&2
  fail "$name does not answer at $url after 30 s; the whole log is $dir/$name.log"
}

build() {
  echo "building; the first time etcd takes some minutes"
  make -s build
  go build -o "$bin/bank" ./examples/bank
  [[ -x $bin/etcd ]] || go build -C tests/etcd -o "$bin/etcd" .
}

secrets() {
  mkdir -p "$dir/tokens/bank" "$dir/tokens/mesh" "$dir/policies"
  chmod 700 "$dir"
  [[ -s $dir/mesh-secret ]] || openssl rand -hex 32 >"$dir/mesh-secret"
  local service
  for service in bank/accounts bank/savings bank/transfers mesh/standby; do
    [[ -s $dir/tokens/$service ]] || openssl rand -hex 16 >"$dir/tokens/$service"
  done
  chmod -R go= "$dir"
  cp -n examples/bank/policy.yaml "$dir/policies/transfer.yaml" 2>/dev/null || true
}

# sidecar NAME SERVICE BASE [more flags]
sidecar() {
  local name=$1 service=$2 base=$3
  shift 3
  start "$name-sidecar" "$bin/txmesh-sidecar" --service "$service" --data-dir "$dir/$name" --store "etcd://127.0.0.1:$etcd_port/txmesh" \
    --api "127.0.0.1:$((base + 20))" --peer "127.0.0.1:$((base + 8))" --mesh-secret-file "$dir/mesh-secret" \
    --control-plane "$plane" --control-plane-ca "$dir/plane/bundle.pem" --identity control-plane --join-address "$plane" \
    --join-token-file "$dir/tokens/$service" --join-ca-file "$dir/plane/bundle.pem" --join-keep-key true --log-format text "$@"
}

up() {
  command -v openssl >/dev/null || fail "openssl is missing: install it and start again"
  command -v curl >/dev/null || fail "curl is missing: install it and start again"
  build
  secrets
  start etcd "$bin/etcd" --data-dir "$dir/etcd" --listen-client-urls "http://127.0.0.1:$etcd_port" \
    --advertise-client-urls "http://127.0.0.1:$etcd_port" --listen-peer-urls "http://127.0.0.1:$((etcd_port + 1))" --log-level warn \
    --initial-advertise-peer-urls "http://127.0.0.1:$((etcd_port + 1))" --initial-cluster "default=http://127.0.0.1:$((etcd_port + 1))" \
    --auto-compaction-mode periodic --auto-compaction-retention 5m
  answers etcd "http://127.0.0.1:$etcd_port/health"
  start control-plane "$bin/txmesh-controlplane" --listen "$plane" --api "$plane_api" --policies "$dir/policies" --data-dir "$dir/plane" \
    --tokens-dir "$dir/tokens" --log-format text
  answers control-plane "http://$plane_api/readyz"
  local member name service port base
  for member in "${members[@]}"; do
    IFS='|' read -r name service port base <<<"${member// /}"
    case $service in
    accounts) start "$name" "$bin/bank" --as accounts --listen "127.0.0.1:$port" --data "$dir/accounts.jsonl" --balances alice=1000 ;;
    savings) start "$name" "$bin/bank" --as savings --listen "127.0.0.1:$port" --data "$dir/savings.jsonl" --balances bob=50,carol=closed ;;
    transfers) start "$name" "$bin/bank" --listen "127.0.0.1:$port" --accounts-url "http://127.0.0.1:$((base + 31))" --savings-url "http://127.0.0.1:$((base + 32))" ;;
    esac
    local upstreams=()
    [[ $service != transfers ]] || upstreams=(--upstreams "service=accounts,listen=127.0.0.1:$((base + 31)),to=127.0.0.1:17106;service=savings,listen=127.0.0.1:$((base + 32)),to=127.0.0.1:17206")
    sidecar "$name" "bank/$service" "$base" --app "127.0.0.1:$port" --inbound "127.0.0.1:$((base + 6))" --outbound off "${upstreams[@]}"
    answers "$name-sidecar" "http://127.0.0.1:$((base + 20))/readyz"
  done
  sidecar standby mesh/standby 17500 --standby true
  answers standby-sidecar http://127.0.0.1:17520/readyz
  "$bin/txmesh" policy status --control-plane "http://$plane_api" --token-file "$dir/plane/api-token" || true
  cat <<TEXT

The mesh is up, and stays up. Try:
  curl -i -d '{"from":"alice","to":"bob","amount":30}' -H 'Idempotency-Key: "t-1"' http://127.0.0.1:17306/transfers
  curl -i -d '{"from":"alice","to":"carol","amount":30}' http://127.0.0.1:17306/transfers     # refused, and undone
  curl -s http://127.0.0.1:17001/balances http://127.0.0.1:17002/balances
  bin/txmesh tx list --api http://127.0.0.1:17420 --token-file $dir/transfers2/api-token     # any sidecar shows all
  kill -9 \$(cat $dir/transfers1-sidecar.pid)          # transfers2 goes on with what is open: $dir/transfers2-sidecar.log
  \$EDITOR $dir/policies/transfer.yaml                # and see who runs it:
  bin/txmesh policy status --control-plane http://$plane_api --token-file $dir/plane/api-token
Logs are in $dir. \`make fleet-down\` ends it.
TEXT
}

down() {
  local file pids=()
  for file in "$dir"/*.pid; do
    [[ -e $file ]] || continue
    pids+=("$(<"$file")")
    rm -f "$file"
  done
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  echo "ended ${#pids[@]} processes; what they wrote is still in $dir"
}

status() {
  local file name
  for file in "$dir"/*.pid; do
    [[ -e $file ]] || { echo "nothing was started in $dir"; return 0; }
    name=$(basename "$file" .pid)
    if alive "$name"; then echo "$name: up, process $(<"$file")"; else echo "$name: down, see $dir/$name.log"; fi
  done
}

case ${1:-up} in
up | down | status) "${1:-up}" ;;
*) fail "unknown command $1: up, down or status" ;;
esac
