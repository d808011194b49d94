#!/bin/bash
# Boots the machine's systemd in new namespaces: boot.sh WORK PORTFWD VARIANT. Copies WORK/units to
# /etc/systemd/system and WORK/state to /var/lib/portfwd. The root is a tmpfs with the machine's /usr, read-only.
set -eu
exec unshare --mount --net --uts --ipc --pid --cgroup --fork --kill-child bash -c '
set -eu
work=$1 portfwd=$2 variant=$3 root=$1/root
mount --make-rprivate /
mkdir -p $root; mount -t tmpfs root $root; cd $root
mkdir -p etc/systemd/system dev/pts dev/shm home proc root run sys tmp usr var/lib/portfwd var/log
for link in bin sbin lib lib32 lib64; do if [ -L /$link ]; then cp -a /$link $link; fi; done
mount --bind /usr usr; mount -o remount,bind,ro usr
mount -t tmpfs local usr/local; mkdir usr/local/sbin; cp $portfwd usr/local/sbin/portfwd
for file in passwd group nsswitch.conf protocols services ld.so.cache alternatives nftables.conf os-release; do
    if [ -e /etc/$file ]; then cp -a /etc/$file etc; fi
done
for program in iptables ip6tables; do for end in "" -save -restore; do
    ln -sfn /usr/sbin/$program-$variant$end etc/alternatives/$program$end
done; done
: > etc/machine-id
cp -a $work/units/. etc/systemd/system; cp -a $work/state/. var/lib/portfwd
# Masks the units for hardware, users and time.
for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
    systemd-logind.service dbus.service dbus.socket getty.target systemd-timesyncd.service dev-hugepages.mount \
    dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    proc-sys-fs-binfmt_misc.automount systemd-binfmt.service systemd-hwdb-update.service systemd-random-seed.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-user-sessions.service \
    systemd-firstboot.service systemd-sysusers.service systemd-machine-id-commit.service systemd-remount-fs.service; do
    if [ ! -e etc/systemd/system/$unit ]; then ln -s /dev/null etc/systemd/system/$unit; fi
done
mount -t proc proc proc
# Only the sysctls below net belong to the new namespaces. The others belong to the machine: mount them read-only.
for path in proc/sys/*; do if [ $path != proc/sys/net ]; then mount --bind $path $path; mount -o remount,bind,ro $path; fi; done
mount -t sysfs -o ro sys sys; mount -t cgroup2 cgroup sys/fs/cgroup
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts; ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
touch dev/console; mount --bind /dev/null dev/console
mount -t tmpfs -o mode=755 run run; mount -t tmpfs tmp tmp
pivot_root . root; cd /; umount -l /root
exec setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog env -i container=other LANG=C \
    PATH=/usr/local/sbin:/usr/sbin:/usr/bin /usr/lib/systemd/systemd --system --log-target=journal --unit=multi-user.target
' sh "$@"
