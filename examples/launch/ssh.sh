#!/usr/bin/env bash
# redetr on several hosts, with nothing but ssh. All arguments are passed on to redetr:
#
#   HOSTS="node1 user@node2" examples/launch/ssh.sh train detr_r50 --data /shared/coco --output /shared/runs/detr
#
# Every host needs this folder, the data and --output at the same path, and must accept your login without a password.
# The first host must stay up until the end; the run survives the loss of any other. Ctrl-C saves and stops the run. The
# exit code is that of the first host.
#
#   PROCESSES  processes per host (default: one per GPU)
#   TORCHRUN   torchrun on the hosts (default: .venv/bin/torchrun)
#   PORT       of the first host, where the hosts find each other (default: 29400); another for each run at a time
#   OMP_NUM_THREADS   compute threads of each process, which torchrun sets to 1 (hosts without GPUs)
#
# Needs bash 4.1 or newer here.
set -euo pipefail
: "${HOSTS:?names of the hosts, with spaces or line breaks between}"
read -rd '' -a hosts <<<"$HOSTS" || true   # it "fails" at the end of the text
((${#hosts[@]})) || { echo "HOSTS is empty" >&2; exit 2; }
# The same for a run that is started again, and another for other runs.
id=redetr-$(printf '%s\0' "$@" | cksum | cut -d ' ' -f 1)

environment=(
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1   # restarted processes meet at a new store
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150     # seconds for processes to save; the default is 30
)
for name in NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME OMP_NUM_THREADS; do
    [[ -z ${!name:-} ]] || environment+=("$name=${!name}")
done

# Runs on each host: a command that ends with the connection. Otherwise, it would stay on the GPUs after ssh is lost.
# shellcheck disable=SC2016
on_host='
cd "$1" || exit
shift
exec 3<&0
"$@" </dev/null 3<&- &
job=$!
{ while read -r; do :; done; kill -TERM $job; } <&3 >/dev/null 2>&1 &
watch=$!
wait $job
code=$?
kill $watch 2>/dev/null
exit $code'

# Quotes words so that login shells like sh, zsh and fish read them; some do not read the output of `printf %q`.
quoted() {
    local word apostrophe="'\\''"
    for word in "$@"; do printf "'%s' " "${word//\'/$apostrophe}"; done
}

# The standard input of the connections stays open as long as this script holds the pipe open for writing.
pipe=$(mktemp -u)
mkfifo -m 600 "$pipe"
exec {hold}<>"$pipe"
exec {input}<"$pipe"
rm "$pipe"
stop() { { exec {hold}>&-; } 2>/dev/null || true; }
trap stop INT TERM HUP

first=${hosts[0]#*@}
connections=()
for host in "${hosts[@]}"; do
    name=${host#*@}
    is_first=$([[ $name == "$first" ]] && echo 1 || echo 0)
    command=(env "${environment[@]}" "${TORCHRUN:-.venv/bin/torchrun}"
        --nnodes "1:${#hosts[@]}" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 --local-addr "$name"
        --rdzv-backend c10d --rdzv-id "$id" --rdzv-endpoint "$first:${PORT:-29400}"
        --rdzv-conf "is_host=$is_first" -m redetr "$@" --resume)
    {
        trap '' INT   # only this script handles Ctrl-C; the connections still carry the last output of the hosts
        ssh -o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3 "$host" \
            "$(quoted bash -c "$on_host" bash "$PWD" "${command[@]}")" <&"$input" 2>&1 | sed -u "s/^/$name: /"
    } {hold}>&- &
    connections+=($!)
done

finish() {
    local code
    while true; do
        code=0
        wait "$1" || code=$?
        kill -0 "$1" 2>/dev/null || return "$code"   # a signal interrupts `wait`, not the training
    done
}

code=0
finish "${connections[0]}" || code=$?
[[ $code == 0 ]] || stop   # without the first host, the others cannot find each other
for connection in "${connections[@]:1}"; do
    finish "$connection" || true
done
exit "$code"
