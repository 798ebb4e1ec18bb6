#!/bin/bash
# Two hosts in two network namespaces, a CPU each: server on 0, generator on 1.
# usage, as root: FANWIRE=.. BENCH=.. two-hosts.sh OUT CONNECTIONS SHARDS INTERVAL (absolute paths)
#
# OUT/stat.txt has, once a second, the time, the line of CPU 0 in /proc/stat and the clock ticks of the
# server; OUT/toggled when heartbeats began. Leaves the sysctls that it raises as they are then.
set -u
out=$1 n=$2 shards=$3 interval=$4
mkdir -p $out
old=$(sysctl -n net.ipv4.tcp_child_ehash_entries)
sysctl -qw net.ipv4.tcp_child_ehash_entries=4194304
sysctl -qw net.ipv4.tcp_mem="786432 1048576 1310720" fs.file-max=2200000 net.core.netdev_max_backlog=16384
ip netns add srv; ip netns add gen
sysctl -qw net.ipv4.tcp_child_ehash_entries=$old
ip link add vs netns srv type veth peer name vg netns gen
for ns in srv gen; do ip -n $ns link set lo up
 ip netns exec $ns sysctl -qw net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65535 net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_rmem="4096 131072 1048576" net.ipv4.tcp_wmem="4096 16384 1048576"; done
ip -n srv addr add 10.200.0.1/24 dev vs; ip -n srv link set vs up
ip -n gen addr add 10.200.0.2/24 dev vg; ip -n gen link set vg up
ip -n srv route add 10.201.0.0/16 via 10.200.0.2
ip -n gen route add local 10.201.0.0/16 dev lo
ip netns exec srv sh -c 'echo 1 > /sys/class/net/vs/queues/rx-0/rps_cpus; cat /sys/class/net/vs/queues/rx-0/rps_cpus'
ip netns exec gen sh -c 'echo 2 > /sys/class/net/vg/queues/rx-0/rps_cpus; cat /sys/class/net/vg/queues/rx-0/rps_cpus'
echo 'ping_interval = "off"' > $out/c.toml
ip netns exec srv taskset -c 0 ${FANWIRE} serve --config $out/c.toml --shards $shards --cpus 0 --listen 10.200.0.1:8080 --insecure --admin off 2> $out/server.log &
sleep 2
pid=$(pgrep -n -x "$(basename $FANWIRE)")
( while kill -0 $pid 2>/dev/null; do echo "$(date +%s.%N) $(grep '^cpu0 ' /proc/stat) | $(awk '{print $14,$15}' /proc/$pid/stat)"; sleep 1; done ) > $out/stat.txt &
sources=$(seq -s, -f '10.201.0.%g' 1 $(( (n+9999)/10000 )))
cat > $out/toggle.sh <<T
date +%s.%N >> $out/toggled
echo 'ping_interval = "${interval}s"' > $out/c.toml; kill -HUP $pid
T
ip netns exec gen ${BENCH} idle --connections $n --hold 20s,$((interval+30))s --hold-command "sh $out/toggle.sh" --target 10.200.0.1:8080 --path /raw/million --cpus 1 --source $sources --pid $pid --out $out/run > $out/summary.txt 2>&1
date +%s.%N > $out/ended
kill -9 $pid; sleep 1
ip netns del srv; ip netns del gen
cat $out/summary.txt
