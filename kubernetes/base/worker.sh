# What a worker's pod runs: join the study $STUDY once it is there.
#
# A worker that is asked to stop gives its trials back and exits 0. Its Job would take that for "this index is done" and
# never start it again after a node was drained, so here the exit code says what happened: 143, ended by SIGTERM.
set -u

stopped=
worker=
trap 'stopped=yes; [ -z "$worker" ] || kill -TERM "$worker" 2>/dev/null' TERM

tries=0
until hpsearch status "$STUDY" >/dev/null 2>&1; do
    [ -z "$stopped" ] || exit 143
    tries=$((tries + 1))
    if [ "$tries" -ge "${STUDY_TRIES:-120}" ]; then
        hpsearch status "$STUDY" # says why
        exit
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
