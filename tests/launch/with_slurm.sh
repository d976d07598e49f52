#!/usr/bin/env bash
# Runs a command beside a one-node SLURM of its own, which ends with it: with_slurm.sh <command...>
#
# Exit code 77 and a sentence where that is not possible here.
set -uo pipefail

skip() {
  echo "skipped: $*"
  exit 77
}

[[ "$(id -u)" == 0 ]] || skip "SLURM's daemons are started as root, and this is not root"
PATH="$PATH:/usr/sbin"
for program in munged slurmctld slurmd srun; do
  command -v "$program" >/dev/null || skip "$program is not installed (Debian: slurm-wlm, munge)"
done

folder="$(mktemp -d /tmp/accel_slurm_XXXXXX)"
# Kills whatever was started with this SLURM's configuration in its environment. Asked to end instead,
# a slurmd waits for a step that cannot report to its controller any more, for minutes.
# shellcheck disable=SC2317  # called by the trap
end() {
  local environment
  while read -r environment; do
    environment="${environment#/proc/}"
    kill -KILL "${environment%/environ}" 2>/dev/null
  done < <(grep -lsz "^SLURM_CONF=$folder/" /proc/[0-9]*/environ)
  wait 2>/dev/null
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

free_port() {
  local port
  for ((;;)); do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

host="$(hostname -s)"
export SLURM_CONF="$folder/slurm.conf"
cat >"$SLURM_CONF" <<END
ClusterName=accel
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES OverSubscribe=FORCE:4 State=UP
END
mkdir -p "$folder/state" "$folder/spool"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")

munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" \
  >"$folder/munged.out" 2>&1 &
slurmctld -D >"$folder/slurmctld.out" 2>&1 &
slurmd -D -N "$host" >"$folder/slurmd.out" 2>&1 &

for ((i = 0; i < 150; ++i)); do
  [[ "$(sinfo --noheader --format %t 2>/dev/null)" == idle ]] && break
  sleep 0.1
done
if [[ "$(sinfo --noheader --format %t 2>/dev/null)" != idle ]]; then
  tail -n 5 "$folder"/*.log "$folder"/*.out
  skip "a one-node SLURM did not come up within 15 s, its logs stand above"
fi

"$@"
