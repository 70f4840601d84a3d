# The network of a guest with strongSwan: one card, GRE and ESP of the kernel.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
. /boot.d/environment
fail() { echo "$*" >>/ctl/failed; }
mkdir -p /usr/lib/modules
ln -sfn "/usr/lib/uml/modules/$(uname -r)" "/usr/lib/modules/$(uname -r)"
ldconfig 2>/dev/null
hostname strongswan
. /boot.d/ipsec.sh
for scope in all default; do
  echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter
done
ip address add "$wan" dev vec0 && ip link set vec0 up && ip route add default via "$gateway" || fail "underlay"
. /boot.d/commands.sh
