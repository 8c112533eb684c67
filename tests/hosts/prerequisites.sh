#!/bin/sh
# What the end-to-end tests need of a Debian machine; installs only what is missing, and only as root.
# Source it and call `ownstack_test_prerequisites`, or run it. Exit status 0: all there; 1: the
# printed commands are missing and could not be installed, so the end-to-end tests cannot run.

# command:package
OWNSTACK_TEST_NEEDS="
mmdebstrap:mmdebstrap
systemd-nspawn:systemd-container
ip:iproute2
nft:nftables
zstd:zstd
busybox:busybox
xz:xz-utils
shellcheck:shellcheck
ssh:openssh-client
ssh-keygen:openssh-client
nsenter:util-linux
chromium:chromium
chromedriver:chromium-driver
"

ownstack_missing() {
    for need in $OWNSTACK_TEST_NEEDS; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${need%%:*}" >/dev/null 2>&1 || printf '%s\n' "${need##*:}"
    done | sort -u
}

ownstack_test_prerequisites() {
    packages=$(ownstack_missing)
    [ -n "$packages" ] || return 0
    # shellcheck disable=SC2086  # a list of package names
    set -- $packages
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "end-to-end tests need root on Debian and these packages: $*" >&2
        return 1
    fi
    echo "installing for the end-to-end tests: $*" >&2
    export DEBIAN_FRONTEND=noninteractive
    # a mirror that lags behind its validity date is still a signed mirror
    apt-get -q -o Acquire::Check-Valid-Until=false -o Acquire::Retries=5 update >/dev/null </dev/null &&
        apt-get -q -y -o Acquire::Retries=5 install --no-install-recommends "$@" >/dev/null </dev/null || return 1
    [ -z "$(ownstack_missing)" ]
}

case "${0##*/}" in
    prerequisites.sh) ownstack_test_prerequisites ;;
esac
