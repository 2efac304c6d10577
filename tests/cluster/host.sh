#!/bin/bash
# The first process of a host: gives it folders of its own, starts sshd, and reaps whoever is left
# behind (raylets that have ended would otherwise be waited for as zombies).
#
# host.sh NAME ADDRESS KEYS KEEP...
#   KEYS: a folder with `host` (a key), `user.pub` (who may log in) and `NAME.profile` (of shells)
#   KEEP: folders that the host has in common with all others, wherever they are
set -euo pipefail
name=$1 address=$2 keys=$3
shift 3

own() { # a folder that the host has for itself, with those of KEEP that lie in it
  local place=$1 fresh=$keys/$name$1 kept
  shift
  mkdir -p "$fresh"
  mount -t tmpfs tmpfs "$fresh"
  for kept in "$@"; do
    if [[ $kept == "$place"/* ]]; then
      mkdir -p "$fresh${kept#"$place"}"
      mount --bind "$kept" "$fresh${kept#"$place"}"
    fi
  done
  mount --rbind "$fresh" "$place"
}

hostname "$name"
own /root "$@"
own /tmp "$@"
chmod 1777 /tmp
mount -t tmpfs tmpfs /dev/shm
mkdir -m 700 /root/.ssh
cp "$keys/user.pub" /root/.ssh/authorized_keys
cp "$keys/$name.profile" /root/.profile
cp "$keys/$name.profile" /root/.bashrc
/usr/sbin/sshd -f /dev/null -h "$keys/host" -E /root/sshd.log \
  -o ListenAddress="$address" -o PidFile=none -o UsePAM=no -o UseDNS=no -o StrictModes=no \
  -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no
echo up
while :; do
  sleep 3600 &
  wait $! || :
done
