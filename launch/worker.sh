#!/usr/bin/env bash
# What a host does, over ssh: bash worker.sh setup | start BACKUP WORDS... | status | save | stop | logs
# Beside it lie source.tar.gz and worker.env. `status` says one line: absent, ready, running,
# stopped, or exit CODE. WORDS follow gemma-train; the log is copied to BACKUP.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# SIGTERM has the run save and end; one that never began, or has ended, is left alone.
end() {
    if [ -f pid ] && [ ! -f exit_code ]; then
        kill -TERM "$(cat train_pid)" 2> /dev/null || true
    fi
}
backup() { gcloud storage cp log "$1/$(hostname).log" --quiet > /dev/null 2>&1 || true; }

case $1 in
setup)
    rm -f ready
    chmod 600 worker.env
    # A fresh machine may still hold apt's lock.
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install google-perftools python3-venv > /dev/null
    rm -rf source && mkdir source && tar -xzf source.tar.gz -C source
    if [ ! -x venv/bin/python ]; then
        if command -v python3.12 > /dev/null; then
            python3.12 -m venv venv
        else  # the images of TPU VMs have an older one
            python3 -m venv uv && uv/bin/pip install --quiet uv
            uv/bin/uv venv --quiet --seed --python 3.12 venv
        fi
    fi
    cd source
    ../venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[tpu,gcs]'
    touch ../ready
    ;;
start)
    [ -f ready ] || { echo "not set up: run setup first" >&2; exit 1; }
    # What is left of an earlier start holds the chips.
    for _ in {1..300}; do
        [ -f pid ] && kill -KILL -- "-$(cat pid)" 2> /dev/null || break
        sleep 0.1
    done
    rm -f exit_code stopped train_pid
    setsid nohup bash worker.sh supervise "${@:2}" >> log 2>&1 < /dev/null &
    echo $! > pid
    ;;
supervise)
    (
        set -a && . ./worker.env && set +a
        cd source && exec ../venv/bin/gemma-train "${@:3}"
    ) &
    echo $! > train_pid
    (while sleep 600; do backup "$2"; done) &
    code=0
    wait "$(cat train_pid)" || code=$?
    echo "$code" > exit_code
    backup "$2"
    kill -KILL -- "-$$" # the copies' loop, and this
    ;;
status)
    if [ ! -f ready ]; then
        echo absent
    elif [ -f exit_code ]; then
        if [ -f stopped ] && [ "$(cat exit_code)" = 0 ]; then
            echo stopped
        else
            echo "exit $(cat exit_code)"
        fi
    elif [ ! -f pid ]; then
        echo ready
    elif kill -0 "$(cat pid)" 2> /dev/null; then
        echo running
    else
        echo "exit 137" # gone without a word: killed, or the machine was started anew
    fi
    ;;
save) # for another start to follow
    end
    ;;
stop) # for good, as far as the babysitter knows
    touch stopped
    end
    ;;
logs)
    exec tail -n 200 -F log
    ;;
*)
    echo "worker.sh: unknown verb $1" >&2
    exit 2
    ;;
esac
