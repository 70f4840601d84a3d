# End charon with the signal $1: politely, or as a crash would. charon 5.9 can hang at its end: then it is killed.
pids=$(pidof charon) || exit 0
gone() {
  for pid in $pids; do
    # What nobody has waited for yet is gone too.
    { read -r _ _ state _ <"/proc/$pid/stat"; } 2>/dev/null && [ "$state" != Z ] && return 1
  done
  return 0
}
wait_gone() {
  local end=$((SECONDS + $1))
  until gone; do
    [ $SECONDS -lt $end ] || return 1
    read -rt 0.05 -u 9
  done
}
kill -"$1" $pids
wait_gone 10 && exit 0
kill -KILL $pids
wait_gone 20 && exit 0
ps -eo pid,ppid,stat,wchan:30,args
exit 1
