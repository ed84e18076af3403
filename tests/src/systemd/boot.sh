# Boots systemd in the file system that was made before, whose directory this is, with the files of `seed`.
printf '127.0.0.1 localhost\n::1 localhost\n' >etc/hosts
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
hostname gateway

# Units of other packages have no business here, and what systemd itself does for real hardware
# has none either: the journal is enough.
find usr/lib/systemd/system -path '*.wants/*' ! -name 'systemd-journald*' -delete
rm -rf usr/lib/systemd/system-generators usr/lib/systemd/system-environment-generators
cat >etc/systemd/system/machine.target <<'UNIT'
[Unit]
Description=What the tests boot
Requires=multi-user.target
After=multi-user.target
UNIT
cp -a "$seed"/. .

# What belongs to the kernel, and so to everybody, can't be changed from here.
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs -o mode=0755,nosuid dev dev
mkdir dev/pts dev/shm
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for name in full null random tty urandom zero; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
touch dev/console
mount --bind /dev/null dev/console

pivot_root . .old
umount -l /.old
# As a container's manager leaves it: what systemd mounts for a unit, that one finds.
mount --make-rshared /
exec env -i container=nspawn PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --unit=machine.target
