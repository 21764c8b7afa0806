# What a worker's pod runs: join the study $STUDY once it is there.
#
# A worker that is asked to stop gives its trials back and exits 0. Its Job would take that for "this index is done" and
# never start it again after a node was drained, so here the exit code says what happened: 143, ended by SIGTERM.
set -u

stopped=
worker=
trap 'stopped=yes; [ -z "$worker" ] || kill -TERM "$worker" 2>/dev/null' TERM

waits_until=$(($(date +%s) + ${STUDY_SECONDS:-600})) # the startup probe in workers.yaml outlasts it
said_before=
while :; do
    said=$(hpsearch status "$STUDY" 2>&1 >/dev/null)
    code=$?
    [ "$code" -ne 0 ] || break
    [ -z "$stopped" ] || exit 143
    [ "$said" = "$said_before" ] || printf '%s\n' "$said" >&2
    said_before=$said
    if [ "$(date +%s)" -ge "$waits_until" ]; then
        case $said in
        *"no study "*) exit 3 ;; # not ready yet: 2, bad input, would end the whole Job
        *) exit "$code" ;;
        esac
    fi
    sleep "${STUDY_WAIT_SECONDS:-5}" &
    wait "$!"
done
[ -z "$stopped" ] || exit 143

hpsearch worker "$STUDY" &
worker=$!
[ -z "$stopped" ] || kill -TERM "$worker"
wait "$worker"
code=$?
if [ -n "$stopped" ]; then
    wait "$worker" # the first wait ended with the signal, the worker some seconds later
    exit 143
fi
exit "$code"
