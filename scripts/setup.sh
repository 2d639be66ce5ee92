#!/bin/sh
# Makes the checkout ready to run: system packages, .venv, locked dependencies, native library.
#
# Run by every make target. What is in place already is left alone: the marks in
# .venv hold checksums of what each step was made from, so that a second run only
# compares them. As root, missing Debian packages are installed with apt-get; an
# ordinary user is told which command to have run.
#
# setup.sh servers: the same, and Java and Maven, for real servers and their jars.
# setup.sh node: the same as for servers, and what eBPF and network namespaces need.
# setup.sh test: the same, and what only tests need; an ordinary user's tests do without
# what is missing, and say so.
set -eu
cd "$(dirname "$0")/.."

VENV=.venv
PURPOSE=${1:-}
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Prints why the Python "$1" cannot host the shared library; prints nothing if it can.
unfit() {
    command -v "$1" >/dev/null 2>&1 || { echo "not installed"; return; }
    "$1" -c '
import importlib.util, os, sys, sysconfig
var = sysconfig.get_config_var
library = os.path.join(var("LIBDIR") or "", var("LDLIBRARY") or "")
if sys.version_info < (3, 11):
    print("version %d.%d, needs 3.11 or later" % sys.version_info[:2])
elif sys.implementation.name != "cpython":
    print("not CPython")
elif not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
    print("has no venv module")
elif not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("has no C headers (Python.h)")
elif not var("Py_ENABLE_SHARED") or not os.path.isfile(library):
    print("has no shared libpython to embed")
' 2>/dev/null || echo "does not run"
}

# Prints the command of the Python to use: the first of PATH that is fit, else Debian's.
choose_python() {
    why=$(unfit python3)
    if [ -z "$why" ]; then
        command -v python3
    else
        [ "$(command -v python3 || true)" = /usr/bin/python3 ] ||
            say "python3 of PATH $why; using Debian's /usr/bin/python3" >&2
        echo /usr/bin/python3
    fi
}

# Prints the Debian packages that are missing for the Python "$1".
missing_packages() {
    [ -z "$(unfit "$1")" ] || echo python3 python3-venv python3-dev
    if ! command -v gcc >/dev/null 2>&1; then
        echo gcc libc6-dev
    elif ! echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1; then
        echo libc6-dev
    fi
    command -v memcached >/dev/null 2>&1 || echo memcached
    case $PURPOSE in
        servers) missing_server_packages ;;
        node) missing_node_packages; missing_server_packages ;;
        test) [ "$(id -u)" -ne 0 ] || missing_test_packages ;;
    esac
}

# Prints the Debian packages that real Java servers need, and that are missing.
missing_server_packages() {
    command -v java >/dev/null 2>&1 || echo openjdk-17-jre-headless
    command -v mvn >/dev/null 2>&1 || echo maven
}

# Prints the Debian packages that a node with eBPF and its demo need, and that are missing.
missing_node_packages() {
    [ -d /usr/lib/python3/dist-packages/bcc ] || echo python3-bpfcc
    [ -e /usr/include/linux/bpf.h ] || echo linux-libc-dev
    command -v ip >/dev/null 2>&1 || [ -x /usr/sbin/ip ] || echo iproute2
    command -v nginx >/dev/null 2>&1 || [ -x /usr/sbin/nginx ] || echo nginx-light
    command -v curl >/dev/null 2>&1 || echo curl
}

# Prints the Debian packages that only tests need, and that are missing.
missing_test_packages() {
    missing_node_packages
    command -v memccapable >/dev/null 2>&1 || echo libmemcached-tools
    [ -x /usr/lib/cni/ptp ] || echo containernetworking-plugins
    command -v redis-server >/dev/null 2>&1 || echo redis-server
    command -v etcd >/dev/null 2>&1 || echo etcd-server
    missing_server_packages
}

install_packages() {
    packages=$(missing_packages "$1" | tr '\n' ' ')
    packages=${packages% }
    [ -n "$packages" ] || return 0
    command="apt-get install --no-install-recommends $packages"
    command -v apt-get >/dev/null 2>&1 ||
        die "missing, and there is no apt-get here to install it: $packages"
    [ "$(id -u)" -eq 0 ] || die "system packages are missing; as root, run:
    $command"
    say "installing system packages: $packages"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -y update </dev/null || die "apt-get update failed (see above)"
    # shellcheck disable=SC2086
    apt-get -q -y install --no-install-recommends $packages </dev/null ||
        die "failed: $command"
    left=$(missing_packages "$1" | tr '\n' ' ')
    [ -z "$left" ] || die "still missing after apt-get: $left"
}

# Run "$2..." unless mark "$1" says that it was done from the same inputs (stdin).
once() {
    mark=$VENV/.made-$1
    shift
    state=$(cksum)
    [ "$(cat "$mark" 2>/dev/null || true)" != "$state" ] || return 0
    rm -f "$mark"
    "$@" </dev/null
    echo "$state" >"$mark"
}

make_venv() {
    # A checkout that was moved, or whose Python is gone, starts afresh.
    if [ -e "$VENV" ] && ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        say "$VENV does not run any more: making it anew"
        rm -rf "$VENV"
    fi
    if [ ! -e "$VENV" ]; then
        say "making $VENV with $1 ($("$1" --version))"
        "$1" -m venv "$VENV"
    fi
}

install_locked() {
    say "installing the locked dependencies"
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check -r requirements.lock
}

build() {
    say "building the shared library"
    # Left behind by other builds, it would hide the installed entry points.
    rm -rf proxylib.egg-info
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check \
        --no-deps --no-build-isolation -e .
}

native_sources() { find proxylib/native -type f ! -name '*.so' ! -name '*.o' ! -name '*.pyc' | sort; }

python=$(choose_python)
install_packages "$python"
if [ "$PURPOSE" = test ]; then
    left=$(missing_test_packages | tr '\n' ' ')
    [ -z "$left" ] || say "some tests will be skipped or fail without: apt-get install $left"
fi
make_venv "$python"
interpreter=$("$VENV/bin/python" -c 'import sys; print(sys.version, sys.base_prefix, sys.prefix)')
{ echo "$interpreter"; cat requirements.lock; } | once dependencies install_locked
[ -e proxylib/libproxylib.so ] || rm -f "$VENV/.made-build"
# The editable installation maps packages that were there when it was made.
{ echo "$interpreter"; ls -d -- */__init__.py; cat setup.py requirements.lock
  native_sources | xargs cat; } | once build build
