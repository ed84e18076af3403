# Makes the file system of a room, and stays. Runs as the first process of its namespaces, with -eu.
#   $0  an empty directory     $1  what lies over /etc in this network namespace
umask 022
mount -t tmpfs -o mode=0755 room "$0"
for name in etc lib; do mkdir "$0/$name" "$0/$name.work"; done
mount -t overlay -o "lowerdir=/etc,upperdir=$0/etc,workdir=$0/etc.work" overlay /etc
mount -t overlay -o "lowerdir=/var/lib,upperdir=$0/lib,workdir=$0/lib.work" overlay /var/lib
for path in "$1"/*; do mount --bind "$path" "/etc/${path##*/}"; done
mount -t tmpfs -o mode=0755 log /var/log

# What iptables-legacy locks is locked against the gate as well.
touch /run/xtables.lock "$0/xtables.lock"
mount --bind /run/xtables.lock "$0/xtables.lock"
mount -t tmpfs -o mode=0755 run /run
mkdir /run/lock /run/dbus
touch /run/xtables.lock
mount --bind "$0/xtables.lock" /run/xtables.lock

# What belongs to the kernel, and so to everybody, can't be changed from here.
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys

# `ip netns exec` has mounted a sysfs without them.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
touch /run/room
exec sleep 3600
