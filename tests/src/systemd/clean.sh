# Makes the file system of a machine of a clean Debian. Runs as the first process of its namespaces, with
# -eu; boot.sh comes after it.
#   $0  an empty directory     $1  that Debian, which nothing is written to
#   $2  a directory with files that are there from the beginning, below the root
umask 022
mount -t tmpfs -o mode=0755 machine "$0"
cd "$0"
mkdir .upper .work .root
mount -t overlay -o "lowerdir=$1,upperdir=$0/.upper,workdir=$0/.work" overlay .root
cd .root
mkdir .old
seed=$2
