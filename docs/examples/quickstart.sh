#!/bin/sh
# The scene of docs/quickstart.md: a balancer and two web servers in network namespaces on one bridge. `up` makes it, `down`
# takes it away. Needs root. Nothing else of the machine is touched: 10.77.0.0/24 on a bridge of its own.
set -eu

HOME_DIR=/run/fusis-quickstart
BRIDGE=fusis0

host() { # NAME ADDRESS
    ip netns add "$1"
    ip link add "v-$1" type veth peer name eth0 netns "$1"
    ip link set "v-$1" master "$BRIDGE" up
    ip -n "$1" address add "$2/24" dev eth0
    ip -n "$1" link set lo up
    ip -n "$1" link set eth0 up
}

web_server() { # NAME: answers with it
    mkdir -p "$HOME_DIR/$1"
    echo "$1" >"$HOME_DIR/$1/index.html"
    ip netns exec "$1" python3 -m http.server --directory "$HOME_DIR/$1" 80 >/dev/null 2>&1 &
    echo $! >"$HOME_DIR/$1.pid"
}

case "${1:-}" in
up)
    mkdir -p "$HOME_DIR"
    ip link add "$BRIDGE" type bridge
    ip address add 10.77.0.1/24 dev "$BRIDGE"
    ip link set "$BRIDGE" up
    host lb 10.77.0.2
    host rs1 10.77.0.11
    host rs2 10.77.0.12
    web_server rs1
    web_server rs2
    echo "three hosts: lb 10.77.0.2, rs1 10.77.0.11, rs2 10.77.0.12; web servers on rs1 and rs2"
    ;;
down) # ends whatever runs on these hosts, and waits for it
    for name in lb rs1 rs2; do
        [ -e "/run/netns/$name" ] || continue
        ip netns pids "$name" | xargs -r kill
        tries=100
        while [ -n "$(ip netns pids "$name")" ] && [ $tries -gt 0 ]; do
            tries=$((tries - 1))
            sleep 0.1
        done
        ip netns delete "$name"
        ip link delete "v-$name" 2>/dev/null || true # where something did not end: its namespace is still there
    done
    ip link delete "$BRIDGE" 2>/dev/null || true
    rm -rf "$HOME_DIR"
    ;;
*)
    echo "usage: $0 up|down" >&2
    exit 2
    ;;
esac
