# The network and the daemons of a guest with FRR, and with strongSwan underneath if there is a configuration of it.
. /boot.d/router.sh ip_gre
ip address add "$wan" dev vec0 && ip link set vec0 up && ip route add default via "$gateway" || fail "underlay"
if [ -d /ctl/swanctl ]; then
  . /boot.d/ipsec.sh
  # Policies that wait for traffic have to be there before nhrpd sends any.
  { bash /boot.d/charon.sh && swanctl --load-all; } >>/ctl/daemons.log 2>&1 || fail "charon"
fi
# nhrpd is silent on a multipoint device that is not bound to its underlay device.
ip tunnel add gre1 mode gre key "$key" ttl 64 dev vec0 || fail "gre1"
ip address add "$tunnel/32" dev gre1 && ip link set gre1 mtu 1400 up || fail "gre1 address"
ip link add lan0 type dummy && ip address add "$lan" dev lan0 && ip link set lan0 up || fail "lan0"
while read -r prefix via; do
  ip route add "$prefix" via "$via" dev gre1 onlink || fail "route $prefix"
done </boot.d/routes
if [ "$role" = hub ]; then
  # What nhrpd's manual asks for: forwarded packets are shown to it, so that it can indicate traffic.
  iptables-legacy -A FORWARD -i gre1 -o gre1 -m hashlimit --hashlimit-upto 4/minute --hashlimit-burst 1 \
    --hashlimit-mode srcip,dstip --hashlimit-srcmask 24 --hashlimit-dstmask 24 --hashlimit-name indicate \
    -j NFLOG --nflog-group 1 --nflog-size 128 || fail "iptables"
fi
getent group frrvty >/dev/null || groupadd -r frrvty
getent passwd frr >/dev/null || useradd -r -U -G frrvty -s /usr/sbin/nologin frr
mkdir -p /etc/frr /run/frr /var/log/frr
cp /boot.d/frr.conf /etc/frr/frr.conf
echo "service integrated-vtysh-config" >/etc/frr/vtysh.conf
chown -R frr:frr /etc/frr /run/frr /var/log/frr
: >/ctl/frr.log && chmod 666 /ctl/frr.log
for daemon in zebra nhrpd; do
  /usr/lib/frr/$daemon -d -A 127.0.0.1 >>/ctl/daemons.log 2>&1 || fail "$daemon did not start"
done
for _ in $(seq 100); do [ -S /run/frr/nhrpd.vty ] && break; sleep 0.1; done
vtysh -b >>/ctl/daemons.log 2>&1 || fail "vtysh -b"
. /boot.d/commands.sh
