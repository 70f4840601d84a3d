# What strongSwan needs in a guest, and its files from the host. The host starts charon by /boot.d/charon.sh.
for module in ip_gre esp4 xfrm_user tun; do modprobe $module || fail "$module"; done
# The first SA makes the kernel load the cipher and seed its random generator, which takes seconds.
zeros=0x$(printf '%072d' 1)
ip xfrm state add src 127.0.0.9 dst 127.0.0.8 proto esp spi 257 mode transport aead 'rfc4106(gcm(aes))' "$zeros" 128 ||
  fail "esp"
ip xfrm state flush
rm -rf /etc/swanctl /etc/strongswan.conf
ln -s /ctl/swanctl /etc/swanctl
ln -s /ctl/strongswan.conf /etc/strongswan.conf
