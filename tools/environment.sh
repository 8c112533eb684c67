# Finds or makes the Python environments of a checkout. Sourced by `ownstack` and `tests/run`, which set
# $root (the checkout); POSIX shell only. `environment NAME` makes what requirements/NAME.lock says and
# sets $python to its interpreter.
# shellcheck shell=sh disable=SC2154,SC2034  # root comes from the caller, python goes to it
#
# An environment is complete when its file ownstack.stamp says so. It is written last, so an
# interrupted start leaves nothing that is taken for complete. The stamp names the lock's checksum
# and the checkout's path: a changed lock or a moved checkout makes the environment anew.
#
# The order in which things are tried, from the least to the most that has to be fetched:
#   Python 3.11 to 3.14   one on this machine; uv's own build; the distribution's packages, unpacked
#   uv                    kept from before; through any pip; the vendor's release; through the
#                         distribution's pip; one on this machine
#   packages              through uv; through pip
# Nothing is installed into the system, and no root is needed.

say() { printf '%s\n' "ownstack: $*" >&2; }

cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/ownstack

environment() {
    lock=$root/requirements/$1.lock
    want="1 $(cksum <"$lock") $root"
    case $1 in
        kit) beside=$root/.venv ;;
        *) beside=$root/.venv.$1 ;;
    esac
    hash=$(printf %s "$root" | cksum)
    away=$cache/environments/$1-${hash%% *}
    for env in "$beside" "$away"; do
        if is_complete "$env"; then
            python=$env/bin/python
            return
        fi
    done
    for env in "$beside" "$away"; do
        if may_write "$env" && claim; then
            if [ -z "$python" ]; then
                make_environment
            fi
            return
        fi
    done
    fail "neither $beside nor $away can be written" "set XDG_CACHE_HOME to a folder that can be written"
}

is_complete() { # FOLDER
    [ -x "$1/bin/python" ] && [ -r "$1/ownstack.stamp" ] || return 1
    { IFS= read -r got && IFS= read -r libraries; } <"$1/ownstack.stamp" || return 1
    [ "$got" = "$want" ] || return 1
    use_libraries
}

use_libraries() { # of a Python unpacked from the distribution's packages
    [ -z "$libraries" ] || export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}

may_write() { # FOLDER, and its lock beside it
    mkdir -p "${1%/*}" 2>/dev/null || return 1
    [ -w "${1%/*}" ] && { [ ! -e "$1" ] || [ -w "$1" ]; }
}

fail() { # MESSAGE HINT
    if [ -s "${log:-/dev/null}" ]; then
        printf '\n' >&2
        tail -n 12 "$log" | sed 's/^/    /' >&2
    fi
    printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2
    [ -z "${held:-}" ] || release
    trap - EXIT
    exit 1
}

# ---- making one ---------------------------------------------------------------------------------

# Take $env for this start, or find it complete; fails where it is a folder that someone else made.
claim() {
    python=''
    hold
    if is_complete "$env"; then # another start made it while this one waited
        python=$env/bin/python
        release
    elif [ -e "$env" ] && [ ! -f "$env/ownstack.stamp" ] && [ -n "$(ls -A "$env")" ]; then
        release
        return 1
    fi
}

make_environment() {
    begun=$(date +%s)
    mkdir -p "$cache/tools" 2>/dev/null || cache=$env.cache
    mkdir -p "$cache/tools" || fail "cannot write $cache" "set XDG_CACHE_HOME to a folder that can be written"
    hash=$(printf %s "$env" | cksum)
    work=$cache/tools/making-${hash%% *}
    rm -rf "$work" # what a killed start left there
    mkdir "$work"
    log=$work/log
    : >"$log"
    printf 'ownstack: setting up its Python environment in %s (once) ... ' "$env" >&2
    build
    printf '%s\n%s\n' "$want" "$libraries" >"$env/ownstack.stamp.new"
    mv -f "$env/ownstack.stamp.new" "$env/ownstack.stamp"
    python=$env/bin/python
    printf 'done in %s s, %s\n' "$(($(date +%s) - begun))" "$way" >&2
    release
}

# One start makes an environment, others wait for it. The lock is a link whose target is the
# process id: made in one step, and one of a process that is gone is taken over.
hold() {
    waited='' held='' work=''
    trap unforeseen EXIT
    trap 'release; exit 130' INT TERM HUP
    while ! ln -s "$$" "$env.lock" 2>/dev/null; do
        holder=$(readlink "$env.lock" 2>/dev/null) || continue
        if ! kill -0 "$holder" 2>/dev/null && [ ! -d "/proc/$holder" ]; then
            mv -f "$env.lock" "$env.lock.$$" 2>/dev/null && rm -f "$env.lock.$$"
            continue
        fi
        [ -n "$waited" ] || say "waiting for another start (process $holder) to set up $env"
        waited=yes
        sleep 1
    done
    held=yes
}

unforeseen() {
    fail "setting up the Python environment stopped" "start again; the lines above say where it stopped"
}

release() {
    trap - EXIT INT TERM HUP
    [ -z "$work" ] || rm -rf "$work"
    [ -z "$held" ] || rm -f "$env.lock"
    held=''
}

build() {
    good='' any='' uv='' libraries='' way=''
    find_pythons
    find_uv pip_uv vendor_uv distribution_pip_uv
    [ -n "$good" ] || kept_python || vendor_python || distribution_python || no_python
    [ -n "$uv" ] || find_uv pip_uv distribution_pip_uv
    mkdir -p "$env"
    echo unfinished >"$env/ownstack.stamp"
    find "$env" -mindepth 1 -maxdepth 1 ! -name ownstack.stamp -exec rm -rf {} +
    use_libraries
    through_uv || through_pip || no_packages
    site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$root/src" >"$site/ownstack.pth"
    "$env/bin/python" -P -c 'import ownstack' 2>>"$log" || fail "the new environment cannot import ownstack" \
        "this is a fault of the kit; the lines above say more"
}

quietly() { "$@" >>"$log" 2>&1 </dev/null; }

# ---- Python -------------------------------------------------------------------------------------

# $good: a Python that the kit can use. $any: one that can at least run a pip. Both are real paths,
# past version managers' shims and links, so that a Python that goes away is noticed.
find_pythons() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3 python; do
        command -v "$name" >/dev/null 2>&1 || continue
        path=$("$name" -c 'import os, sys; print(os.path.realpath(sys.executable))' 2>/dev/null </dev/null) || continue
        [ -n "$any" ] || ! can_pip "$path" || any=$path
        usable "$path" || continue
        good=$path
        ! can_pip "$good" || any=$good
        return 0
    done
}

usable() { # PYTHON: new enough, and whole (distributions split the standard library)
    "$1" -c '
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null </dev/null &&
        "$1" -c 'import ctypes, ssl, sqlite3, tomllib, venv, zipfile' 2>>"$log" </dev/null
}

vendor_python() {
    [ -n "$uv" ] || return 1
    UV_PYTHON_INSTALL_DIR=$cache/python quietly "$uv" python install --no-bin 3.12 || return 1
    good=$(UV_PYTHON_INSTALL_DIR=$cache/python "$uv" python find --managed-python --no-project 3.12 2>>"$log") || return 1
    usable "$good" || return 1
    any=${any:-$good} way="uv's python: "
}

kept_python() { # unpacked by an earlier start
    for version in 3.13 3.12 3.11; do
        folder=$cache/python/distribution-$version
        unpacked_python && return
    done
    return 1
}

distribution_python() { # Debian's and Ubuntu's signed packages, unpacked; needs no root
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
    for version in 3.13 3.12 3.11; do
        folder=$cache/python/distribution-$version
        apt_fetch "python$version" "$work/python" || continue
        rm -rf "$folder"
        mkdir -p "$cache/python"
        mv "$work/python" "$folder"
        unpacked_python && return
    done
    return 1
}

unpacked_python() { # in $folder, with its shared libraries
    [ -x "$folder/usr/bin/python$version" ] || return 1
    good=$folder/usr/bin/python$version
    libraries=$(find "$folder" -name '*.so.*' -exec dirname {} \; | sort -u | tr '\n' ':' | sed 's/:$//')
    if (use_libraries && usable "$good"); then
        way="the distribution's python, unpacked: "
        return
    fi
    good='' libraries=''
    return 1
}

# apt_fetch PACKAGE FOLDER: unpack a package there, with those of its needs that are not installed.
# The package lists of the system are used, or fresh ones of our own where it has none.
apt_fetch() {
    apt_lists=''
    packages=$(apt_needs "$1")
    if [ -z "$packages" ]; then
        apt_lists=$work/apt
        mkdir -p "$apt_lists/lists/partial" "$apt_lists/cache/archives/partial"
        [ -n "${apt_updated:-}" ] || quietly apt update || return 1
        apt_updated=yes
        packages=$(apt_needs "$1")
        [ -n "$packages" ] || return 1
    fi
    rm -rf "$work/debs" "$2"
    mkdir -p "$work/debs" "$2"
    # shellcheck disable=SC2086  # a list of package names
    (cd "$work/debs" && quietly apt download $packages) || return 1
    for deb in "$work/debs"/*.deb; do
        dpkg-deb -x "$deb" "$2" 2>>"$log" || return 1
    done
}

apt() {
    set -- -q -o Debug::NoLocking=1 -o Acquire::Retries=2 -o APT::Sandbox::User="$(id -un)" "$@"
    [ -z "$apt_lists" ] || set -- -o "Dir::State::lists=$apt_lists/lists" -o "Dir::Cache=$apt_lists/cache" "$@"
    LC_ALL=C apt-get "$@"
}

apt_needs() { # PACKAGE: it and what it needs that is not installed, one a line
    apt -s -y --no-install-recommends install "$1" 2>>"$log" </dev/null | sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}

# ---- uv -----------------------------------------------------------------------------------------

find_uv() { # WAYS
    kept=$cache/tools/uv-$(cat "$root/requirements/uv.lock" "$root/requirements/uv.vendor" | cksum | tr ' ' -)
    if runs_uv "$kept"; then
        uv=$kept
        return
    fi
    for from in "$@"; do
        if "$from" && chmod +x "$work/uv" && runs_uv "$work/uv"; then
            mv -f "$work/uv" "$kept"
            uv=$kept
            return
        fi
    done
    uv=$(command -v uv 2>/dev/null) && runs_uv "$uv" || uv=''
}

runs_uv() { [ -x "$1" ] && quietly "$1" --version; }

pip_uv() {
    [ -n "$any" ] || return 1
    rm -rf "$work/wheel" && mkdir "$work/wheel"
    quietly run_pip download -q --no-deps --only-binary :all: --require-hashes -r "$root/requirements/uv.lock" \
        -d "$work/wheel" || return 1
    quietly "$any" -m zipfile -e "$work"/wheel/uv-*.whl "$work/wheel" || return 1
    mv "$work"/wheel/uv-*.data/scripts/uv "$work/uv"
}

vendor_uv() {
    platform=$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m | sed 's/^arm64$/aarch64/')
    while read -r its_platform _ sum address; do
        [ "$its_platform" = "$platform" ] || continue
        fetch "$address" "$work/uv.tar.gz" || return 1
        if [ "$(sha256 "$work/uv.tar.gz")" != "$sum" ]; then
            echo "$address: not the pinned file, refused" >>"$log"
            return 1
        fi
        mkdir -p "$work/release"
        quietly tar -xzf "$work/uv.tar.gz" -C "$work/release" && mv "$work"/release/uv-*/uv "$work/uv"
        return
    done <"$root/requirements/uv.vendor"
    return 1
}

distribution_pip_uv() { # Debian's python3 comes without pip; its package of pip needs no root to unpack
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
    before=$any
    for any in "$before" "$good" "$(command -v python3)"; do
        [ -n "$any" ] && quietly "$any" -c '' && break
    done
    if [ -n "$any" ] && apt_fetch python3-pip-whl "$work/pip"; then
        mv "$work"/pip/usr/share/python-wheels/pip-*.whl "$cache/tools/"
        pip_uv && return
    fi
    any=$before
    return 1
}

fetch() { # ADDRESS FILE
    if command -v curl >/dev/null 2>&1; then
        quietly curl -fsSL --connect-timeout 15 --retry 2 -o "$2" "$1"
    elif command -v wget >/dev/null 2>&1; then
        quietly wget -q -T 30 -O "$2" "$1"
    else
        return 1
    fi
}

sha256() { # FILE
    { sha256sum "$1" 2>/dev/null || shasum -a 256 "$1"; } | sed 's/ .*//'
}

# ---- packages -----------------------------------------------------------------------------------

through_uv() {
    [ -n "$uv" ] || return 1
    # pip's settings of the machine (a company's index) count for uv too
    index=''
    [ -z "$any" ] || index=$(run_pip config get global.index-url 2>/dev/null) || index=''
    (
        for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
            [ ! -s "$bundle" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$bundle}"
        done
        [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
        export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-60}" UV_PYTHON_DOWNLOADS=never
        quietly "$uv" venv --no-project --no-config --allow-existing --python "$good" "$env" &&
            quietly "$uv" pip sync --no-build --require-hashes --python "$env/bin/python" "$lock"
    ) || return 1
    way="$way$(version) and uv"
}

through_pip() {
    [ -n "$any" ] || return 1
    echo "uv did not do it, trying pip" >>"$log"
    quietly "$good" -m venv --clear --without-pip "$env" || return 1
    echo unfinished >"$env/ownstack.stamp"
    any=$env/bin/python pip_wheel=$(pip_wheel "$any")
    if [ -n "$pip_wheel" ]; then
        set -- "$env/bin/python" "$pip_wheel/pip"
    else
        quietly "$env/bin/python" -m ensurepip || return 1
        set -- "$env/bin/python" -m pip
    fi
    quietly "$@" --disable-pip-version-check install -q --only-binary :all: --require-hashes -r "$lock" || return 1
    way="$way$(version) and pip"
}

version() { "$env/bin/python" -c 'import sys; print("python %d.%d" % sys.version_info[:2])'; }

can_pip() { # PYTHON
    quietly "$1" -m pip --version || [ -n "$(pip_wheel "$1")" ]
}

run_pip() { # with $any: its own pip, or a pip wheel, which Python can run as it is
    if quietly "$any" -m pip --version; then
        set -- -m pip "$@"
    else
        set -- "$(pip_wheel "$any")/pip" "$@"
    fi
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$any" "$@"
}

pip_wheel() { # PYTHON: a wheel of pip that comes with it, with the distribution, or that we fetched
    "$1" - "$cache/tools" <<'PYTHON' 2>/dev/null
import glob, os, sys
places = [os.path.join(os.path.dirname(os.__file__), "ensurepip", "_bundled"), "/usr/share/python-wheels", sys.argv[1]]
print("".join([f for place in places for f in glob.glob(os.path.join(place, "pip-*.whl"))][:1]))
PYTHON
}

# ---- when nothing works -------------------------------------------------------------------------

no_python() {
    fail "no Python 3.11 to 3.14 here, and none could be fetched" "install one, then start again: $(advice)"
}

no_packages() {
    fail "the kit's Python packages could not be installed" "see the lines above. Without a way to a package \
index set PIP_INDEX_URL and UV_DEFAULT_INDEX to one that can be reached. If Python's own tools are missing: $(advice)"
}

advice() {
    family=$(sed -n 's/^ID\(_LIKE\)\{0,1\}=//p' "${os_release:-/etc/os-release}" 2>/dev/null | tr -d '"' | tr '\n' ' ')
    sudo='sudo '
    [ "$(id -u)" != 0 ] || sudo=''
    python3='' # what the system calls python3 may be too old; then its 3.11 has a name of its own
    ! python3 -c 'import sys; sys.exit(sys.version_info >= (3, 11))' 2>/dev/null </dev/null || python3=python3.11
    case " $(uname -s) $family " in
        *' debian '* | *' ubuntu '*)
            echo "${sudo}apt-get update && ${sudo}apt-get install -y ${python3:-python3} ${python3:-python3}-venv \
curl ca-certificates" ;;
        *' fedora '* | *' rhel '*) echo "${sudo}dnf install -y ${python3:-python3} ${python3:-python3}-pip" ;;
        *' arch '*) echo "${sudo}pacman -S --needed python python-pip" ;;
        *' alpine '*) echo "${sudo}apk add python3 py3-pip" ;;
        *' suse '* | *' opensuse'*) echo "${sudo}zypper install -y python312 python312-pip" ;;
        *' Darwin '*) echo "brew install python@3.12" ;;
        *) echo "Python 3.11 or newer with pip, from your system's packages" ;;
    esac
}
