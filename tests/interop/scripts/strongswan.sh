# The network of a guest with strongSwan: one card, GRE and ESP of the kernel. The host starts charon by /boot.d/charon.sh.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
. /boot.d/environment
fail() { echo "$*" >>/ctl/failed; }
mkdir -p /usr/lib/modules /dev/net
ln -sfn "/usr/lib/uml/modules/$(uname -r)" "/usr/lib/modules/$(uname -r)"
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ldconfig 2>/dev/null
hostname strongswan
# charon wants IPv6 sockets and gives up without.
for module in ipv6 ip_gre esp4 xfrm_user tun; do modprobe $module || fail "$module"; done
for scope in all default; do
  echo 1 >/proc/sys/net/ipv6/conf/$scope/disable_ipv6
  echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter
done
ip link set lo up
ip address add "$wan" dev vec0 && ip link set vec0 up && ip route add default via "$gateway" || fail "underlay"
# The first SA makes the kernel load the cipher and seed its random generator, which takes seconds.
key=0x$(printf '%072d' 1)
ip xfrm state add src 127.0.0.9 dst 127.0.0.8 proto esp spi 257 mode transport aead 'rfc4106(gcm(aes))' "$key" 128 ||
  fail "esp"
ip xfrm state flush
rm -rf /etc/swanctl /etc/strongswan.conf
ln -s /ctl/swanctl /etc/swanctl
ln -s /ctl/strongswan.conf /etc/strongswan.conf
. /boot.d/commands.sh
