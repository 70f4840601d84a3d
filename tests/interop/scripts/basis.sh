# What every guest begins with. The arguments are modules to load.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
. /boot.d/environment
fail() { echo "$*" >>/ctl/failed; }
mkdir -p /usr/lib/modules /dev/net
ln -sfn "/usr/lib/uml/modules/$(uname -r)" "/usr/lib/modules/$(uname -r)"
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ldconfig 2>/dev/null
hostname "$name"
# charon wants IPv6 sockets and gives up without; nobody uses its addresses.
for module in ipv6 "$@"; do modprobe "$module" || fail "$module"; done
for scope in all default; do
  echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter
  echo 1 >/proc/sys/net/ipv6/conf/$scope/disable_ipv6
done
ip link set lo up
