# What a guest begins with that forwards between its tunnel and a LAN. The arguments are modules to load.
. /boot.d/basis.sh dummy "$@"
for scope in all default; do
  echo 0 >/proc/sys/net/ipv4/conf/$scope/send_redirects
done
echo 1 >/proc/sys/net/ipv4/ip_forward
