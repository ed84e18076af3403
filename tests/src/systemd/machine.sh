# Makes the file system of a machine of the Debian that is installed here. Runs as the first process
# of its namespaces, with -eu; boot.sh comes after it.
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

install -m 0755 "$1" usr/sbin/spa-server
install -m 0644 "$2"/spa-*.service "$2"/spa-*.socket usr/lib/systemd/system/
systemd-sysusers --root="$PWD" "$2/sysusers.conf"
seed=$3
