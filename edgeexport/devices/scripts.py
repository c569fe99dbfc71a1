"""The shell scripts that run on a device: POSIX sh, with nothing but what coreutils, busybox and toybox have.

The rule: no script is ever put together from pieces. Each is a constant, and what it works on are its parameters.
"""

from __future__ import annotations

NO_CACHE, NO_WRITE, DAMAGED, LATE = 73, 74, 65, 124

# mark, script, words: what stands between the marks is what the script wrote, and the second says how it ended.
FRAME = r"""
mark=$1 script=$2; shift 2
printf '%s begin\n' "$mark"
sh -c "$script" sh "$@"
code=$?
printf '\n%s end %d\n' "$mark" "$code"
"""

# cache (may be empty) -> name=value lines. Clears what lost launches left, and files that no job used for a month.
HELLO = r"""
umask 077
cache=$1
[ -n "$cache" ] || cache=${XDG_CACHE_HOME:-$HOME/.cache}/edgeexport
mkdir -p "$cache/files" "$cache/jobs" && cd "$cache" || exit 73
find jobs -mindepth 1 -maxdepth 1 -mtime +0 -exec rm -rf {} + 2>/dev/null
find files -type f -mtime +30 -exec rm -f {} + 2>/dev/null
echo "cache=$(pwd)"
echo "boot_id=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
"""

# cache, names -> those names whose bytes are there and right
CHECK = r"""
cd "$1/files" || exit 73
shift
for name in "$@"; do
    [ -f "$name" ] || continue
    sum=$(sha256sum < "$name")
    [ "${sum%% *}" = "${name%%.*}" ] && touch "$name" && echo "$name"
done
exit 0
"""

# cache, folder, names; a tar on stdin. A file gets its name when its bytes are right.
PUSH = r"""
umask 077
cache=$1 stage=$2; shift 2
mkdir "$stage" && cd "$stage" || exit 73
tar -xf - ; code=$?
for name in "$@"; do
    sum=$(sha256sum < "$name")
    if [ "${sum%% *}" = "${name%%.*}" ]; then
        touch "$name" && mv -f "$name" "$cache/files/$name" || code=74
    else
        code=65
    fi
done
cd / && rm -rf "$stage"
exit $code
"""

# folder, seconds, "keep" or "", command; the job is the line on stdin -> boot id, then what the command writes.
# The command leads a session of its own. It is killed when its time is over, and when stdin ends: then nobody waits.
# The shell itself must outlive a broken pipe: it says on stderr that somebody was killed.
SUPERVISE = r"""
umask 077
folder=$1 seconds=$2 keep=$3; shift 3
mkdir "$folder" && cd "$folder" || exit 73
IFS= read -r job && printf '%s\n' "$job" > job.json || exit 73
command -v setsid > /dev/null || { echo "there is no setsid on the device" >&2; exit 73; }
cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo
exec 3<&0
setsid env -i PATH="$PATH" HOME="${HOME:-/}" TMPDIR="$folder" \
    ${LD_LIBRARY_PATH:+LD_LIBRARY_PATH="$LD_LIBRARY_PATH"} "$@" job.json < /dev/null 3<&- &
program=$!
setsid sh -c 'sleep "$1"; : > late; kill -9 -"$2" || kill -9 "$2"' \
    sh "$seconds" "$program" < /dev/null > /dev/null 2>&1 3<&- &
timer=$!
setsid sh -c 'cat > /dev/null; : > gone; for each in "$1" "$2"; do kill -9 -"$each" || kill -9 "$each"; done
    sleep 1; cd /; rm -rf "$3"' sh "$program" "$timer" "$folder" <&3 > /dev/null 2>&1 3<&- &
lifeline=$!
trap '' PIPE
wait "$program"
code=$?
kill -9 -"$timer" 2> /dev/null || kill -9 "$timer" 2> /dev/null
[ -e gone ] && exit "$code"
kill -9 -"$lifeline" 2> /dev/null || kill -9 "$lifeline" 2> /dev/null
[ -e late ] && code=124
[ -n "$keep" ] && [ "$code" = 0 ] || { cd /; rm -rf "$folder"; }
exit "$code"
"""

# folder, names -> for each the size on a line, then the bytes
PULL = r"""
cd "$1" || exit 1
shift
for name in "$@"; do
    wc -c < "$name" && cat "$name" || exit 1
done
"""

# folder
DROP = r"""
rm -rf "$1"
"""

# program, runtime, Pythons; relative paths start at home -> one JSON line for each that is there
PROBE = r"""
program=$1 runtime=$2; shift 2
cd || exit 0
for python in "$@"; do
    command -v "$python" > /dev/null 2>&1 || continue
    "$python" -c "$program" "$runtime" < /dev/null
done
exit 0
"""

# For any Python 3: its path, and whether numpy and the runtime can be found (not whether they work).
PROBE_PYTHON = r"""
import sys
if sys.version_info >= (3, 8):
    import importlib.util, json
    names = ["numpy"] + [name for name in sys.argv[1:] if name]
    has = all(importlib.util.find_spec(name) is not None for name in names)
    print(json.dumps({"python": sys.executable, "has": has}))
"""

# folder, packages: a Python environment, made anew. It holds on the device what pip finds for it there.
INSTALL = r"""
umask 077
folder=$1; shift
rm -rf "$folder"
python3 -m venv "$folder" >&2 &&
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: "$@" >&2 && exit 0
rm -rf "$folder"
exit 1
"""

# -> name=value lines of what stays the same; properties are Android's
PHONE = r"""
say() { echo "$1=$(getprop "$2" 2> /dev/null)"; }
echo "machine=$(uname -m)"
say sdk ro.build.version.sdk
say release ro.build.version.release
say product ro.product.model
say serial ro.serialno
exit 0
"""

# -> name=value lines of what changes, as Android's services say it. Without a connection to the sensors (HAL), or where
# somebody set it by hand, the thermal status is 0 or whatever was set, and says nothing.
STATE = r"""
thermal=$(dumpsys thermalservice 2> /dev/null)
battery=$(dumpsys battery 2> /dev/null)
case $thermal in
    *"HAL Ready: false"* | *"IsStatusOverride: true"*) ;;
    *) echo "thermal_status=$(echo "$thermal" | sed -n '/^Thermal Status:/{s/[^0-9]*\([0-9]*\).*/\1/p;q;}')" ;;
esac
echo "battery_percent=$(echo "$battery" | sed -n '/^ *level:/{s/[^0-9]*\([0-9]*\).*/\1/p;q;}')"
case $battery in
    *powered:\ true*) echo plugged=true ;;
    *powered:\ false*) echo plugged=false ;;
esac
exit 0
"""

# folder -> exit 0 if a root was unpacked there to its end
UNPACKED = r"""
[ -e "$1/ready" ]
"""

# folder, tar: unpacks a root, and drops the tar and what another version left
UNPACK = r"""
umask 022
rm -rf "${1%/*}"/root-*
mkdir "$1" && tar -xf "$2" -C "$1" && : > "$1/ready" && rm -f "$2" && exit 0
rm -rf "$1" "$2"
exit 1
"""
