#!/usr/bin/env bash
# Runs a command line on three "machines", each with its own network: three_hosts.sh '<command line>'
#
# The machines are network namespaces at 192.168.1.100, .101 and .102, and at fd00::100, ::101 and ::102,
# joined by a bridge in a fourth.
# The command line finds its machine's number, 0 to 2, in HOST_INDEX. Exit code 77 and a sentence where
# this is not possible here; else 0 if all three succeeded.
set -uo pipefail

skip() {
  echo "skipped: $*"
  exit 77
}

[[ "$(id -u)" == 0 ]] || skip "network namespaces are made as root, and this is not root"
command -v ip >/dev/null || skip "ip is not installed (Debian: iproute2)"

prefix="accel$$"
switch="$prefix-switch"
machines=("$prefix-0" "$prefix-1" "$prefix-2")
pids=()
# shellcheck disable=SC2317  # called by the trap
end() {
  ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null
  for space in "${machines[@]}" "$switch"; do
    ip netns pids "$space" 2>/dev/null | xargs -r kill -KILL 2>/dev/null
    ip netns delete "$space" 2>/dev/null
  done
}
trap end EXIT
trap 'exit 130' INT TERM

plug_in() {
  local index="$1" space="${machines[$1]}"
  ip netns add "$space" && ip -n "$space" link set lo up \
    && ip -n "$switch" link add "port$index" type veth peer name eth0 netns "$space" \
    && ip -n "$switch" link set "port$index" master bridge up \
    && ip -n "$space" address add "192.168.1.$((100 + index))/24" dev eth0 \
    && ip -n "$space" address add "fd00::$((100 + index))/64" dev eth0 nodad \
    && ip -n "$space" link set eth0 up
}

build() {
  ip netns add "$switch" && ip -n "$switch" link add bridge type bridge && ip -n "$switch" link set bridge up \
    && plug_in 0 && plug_in 1 && plug_in 2
}
problem="$(build 2>&1)" || skip "this system allows no network namespaces: $problem"

for index in 0 1 2; do
  HOST_INDEX="$index" ip netns exec "${machines[index]}" bash -c "$1" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit "$status"
