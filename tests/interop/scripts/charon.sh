# Start charon and wait until it takes commands; its process id is in /run/charon.pid.
rm -f /run/charon.vici
/usr/lib/ipsec/charon >>/ctl/charon.out 2>&1 9<&- &
for _ in $(seq 200); do
  [ -S /run/charon.vici ] && swanctl --stats >/dev/null 2>&1 && exit 0
  sleep 0.05
done
tail -n 5 /ctl/charon.out
exit 1
