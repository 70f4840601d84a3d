# The network of a guest that runs our own gateway: its underlay in the VRF "front", its tunnel and LAN in "inside".
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
. /boot.d/environment
fail() { echo "$*" >>/ctl/failed; }
mkdir -p /usr/lib/modules /run/dsvpn
ln -sfn "/usr/lib/uml/modules/$(uname -r)" "/usr/lib/modules/$(uname -r)"
hostname "$name"
for module in tun dummy vrf; do modprobe $module || fail "$module"; done
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
for scope in all default; do
  echo 1 >/proc/sys/net/ipv6/conf/$scope/disable_ipv6
  echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter
  echo 0 >/proc/sys/net/ipv4/conf/$scope/send_redirects
done
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up
ip link add front type vrf table 1020 && ip link set front up || fail "front"
ip link add inside type vrf table 10 && ip link set inside up || fail "inside"
ip link set vec0 master front && ip address add "$wan" dev vec0 && ip link set vec0 up || fail "underlay"
ip route add default via "$gateway" table 1020 || fail "default route"
ip link add lan0 type dummy && ip link set lan0 master inside && ip address add "$lan" dev lan0 && ip link set lan0 up \
  || fail "lan0"
env "PYTHONPATH=$pythonpath" "$python" -P -m dsvpn up /boot.d/spoke2.toml >/ctl/dsvpn.log 2>&1 &
. /boot.d/commands.sh
