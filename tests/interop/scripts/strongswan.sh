# The network of a guest with strongSwan: one card, GRE and ESP of the kernel.
. /boot.d/basis.sh
. /boot.d/ipsec.sh
ip address add "$wan" dev vec0 && ip link set vec0 up && ip route add default via "$gateway" || fail "underlay"
. /boot.d/commands.sh
