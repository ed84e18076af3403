# Makes the file system of a machine, and boots systemd in it. Runs as the first process of its
# namespaces, with -eu.
#   $0  an empty directory     $1  spa-server     $2  the directory of its units
#   $3  a directory with files that are there from the beginning, below the root
umask 022
mount -t tmpfs -o mode=0755 machine "$0"
cd "$0"
mkdir dev etc home proc root run sys tmp usr var .old .upper .work
mkdir -p etc/systemd/system var/lib var/log var/tmp
ln -s ../run var/run
chmod 1777 tmp var/tmp
chmod 0700 root

# Debian as it is installed here; what is written to it stays in this machine.
mount -t overlay -o "lowerdir=/usr,upperdir=$0/.upper,workdir=$0/.work" overlay usr
for link in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$link" ]; then cp -P "/$link" .; fi
done
for name in alternatives group ld.so.cache nsswitch.conf os-release passwd protocols services; do
    if [ -e "/etc/$name" ]; then cp -a "/etc/$name" etc; fi
done
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
install -m 0755 "$1" usr/sbin/spa-server
install -m 0644 "$2"/spa-*.service "$2"/spa-*.socket usr/lib/systemd/system/
cp -a "$3"/. .

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
exec env -i container=nspawn PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --unit=machine.target
