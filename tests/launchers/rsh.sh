#!/bin/bash
# rsh.sh [-n PREFIX] HOST COMMAND: stands in for ssh. As there, the command is read by a shell in a session, a folder and an environment of
# its own, gets what this process reads, and is not ended when this process is killed. With -n HOST is one of hosts-up.sh.
# The host `nowhere` refuses, and `silent` never answers.
prefix=
[[ $1 == -n ]] && { prefix=$2; shift 2; }
host=$1 command=$2
case $host in
    nowhere) echo "rsh.sh: connect to host nowhere: No route to host" >&2; exit 255 ;;
    silent) exec sleep 1000 ;;
esac
at=(setsid env -i HOME=/ PATH=/usr/sbin:/usr/bin:/sbin:/bin TEST_MARK="$TEST_MARK")
[[ -n $prefix ]] && at+=(ip netns exec "$prefix-$host" unshare --uts)
# The mark is the tests': by it they find what is left behind.
"${at[@]}" sh -c 'cd /; [ -z "$2" ] || hostname "$1"; eval "$3"' sh "$host" "$prefix" "$command" < <(exec cat)
