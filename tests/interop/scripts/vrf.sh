# The network of a guest that runs our own gateway: its underlay in the VRF "front", its tunnel and LAN in "inside".
. /boot.d/router.sh tun vrf
mkdir -p /run/dsvpn
ip link add front type vrf table 1020 && ip link set front up || fail "front"
ip link add inside type vrf table 10 && ip link set inside up || fail "inside"
ip link set vec0 master front && ip address add "$wan" dev vec0 && ip link set vec0 up || fail "underlay"
ip route add default via "$gateway" table 1020 || fail "default route"
ip link add lan0 type dummy && ip link set lan0 master inside && ip address add "$lan" dev lan0 && ip link set lan0 up \
  || fail "lan0"
env "PYTHONPATH=$pythonpath" "$python" -P -m dsvpn up /boot.d/spoke2.toml >/ctl/dsvpn.log 2>&1 &
. /boot.d/commands.sh
