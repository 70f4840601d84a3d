#!/bin/bash
# Process 1 of the guest: the host's root, read-only, under a RAM overlay, with the peer's packages laid over it.
# The kernel's command line cannot carry values safely, so BOOT, CTL and TREE are filled in when this is copied.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /tmp
mkdir -p /tmp/modules/lib /tmp/upper /tmp/work /tmp/tree /tmp/root
ln -s /usr/lib/uml/modules /tmp/modules/lib/modules
modprobe -d /tmp/modules overlay
mount -t hostfs -o "@TREE@" none /tmp/tree
root=/tmp/root
mount -t overlay -o lowerdir=/tmp/tree:/,upperdir=/tmp/upper,workdir=/tmp/work overlay $root
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
rm -rf $root/var/run && ln -s /run $root/var/run
mount -t proc proc $root/proc
mount -t sysfs sys $root/sys
mount -t devtmpfs dev $root/dev
mkdir -p $root/ctl $root/boot.d
mount -t hostfs -o "@CTL@" none $root/ctl
mount -t hostfs -o "@BOOT@" none $root/boot.d
exec chroot $root /bin/bash /boot.d/main.sh
