#!/usr/bin/env bash
# Does the library work on Arm? An aarch64 Python compiles and checks its kernels, under emulation.
#
#     tests/arm.sh             in a new folder, which is deleted at the end
#     tests/arm.sh FOLDER      in FOLDER/arm64, which is kept: later runs download nothing
#
# It takes five to ten minutes on two cores, as kernels are compiled anew in each run. Python's
# packages come from where this machine has its own, which must be Debian 13; none is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

doing="making a folder"
finish() {
  status=$?
  jobs -p | xargs -r kill 2>/dev/null || true
  [ "$kept" ] || rm -rf "$work"
  ((status == 0)) || echo "arm64: FAILED: $doing" >&2
}
kept=${1:-}
work=${kept:+$(mkdir -p "$kept/arm64" && cd "$kept/arm64" && pwd)}
work=${work:-$(mktemp -d)}
trap finish EXIT
trap 'exit 1' INT TERM

# unpack ARCHITECTURE FOLDER PACKAGE...: packages and all that they depend on. apt keeps its lists
# in a place of its own and is told that nothing is installed, so the machine stays as it is.
unpack() {
  local state=$work/apt-$1 folder=$2
  rm -rf "$state" "$folder"
  mkdir -p "$state"/{lists,archives}/partial "$folder"/usr/{bin,lib,sbin}
  ln -s usr/bin usr/lib usr/sbin "$folder"  # as in Debian, whose packages expect it
  : >"$state/status"
  printf '%s;\n' "APT::Architecture $1" "APT::Architectures {$1;}" "APT::Sandbox::User root" \
    "Dir::State $state" "Dir::State::status $state/status" "Dir::Cache $state" >"$state/config"
  APT_CONFIG=$state/config apt-get -qq update
  APT_CONFIG=$state/config apt-get -qq -y --no-install-recommends --download-only install "${@:3}"
  for package in "$state"/archives/*.deb; do dpkg-deb -x "$package" "$folder"; done
}

doing="fetching an emulator, which is not installed here"
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64) ||
  qemu=$work/host/usr/bin/qemu-aarch64
[ -x "$qemu" ] || unpack "$(dpkg --print-architecture)" "$work/host" qemu-user

if ! [ -e "$work/complete" ]; then
  doing="fetching Python for arm64 (from the sources of Debian 13?)"
  unpack arm64 "$work/root" python3.13-minimal libpython3.13-stdlib libgomp1 libstdc++6
  doing="fetching wheels"
  mapfile -t needed < <(python3 -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")')
  platforms=(--platform manylinux2014_aarch64)  # a wheel names the oldest C library it runs with
  for minor in {17..41}; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
  rm -rf "$work"/{wheels,site}
  python3 -m pip download --quiet --dest "$work/wheels" --only-binary=:all: --implementation cp \
    --python-version 3.13 "${platforms[@]}" "${needed[@]}"
  for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$work/site"; done
  touch "$work/complete"
fi
echo "fetched after $SECONDS s; now kernels are compiled under emulation, for some minutes"

# A process for each part compiles on one core. They share a folder of kernels, as users do.
doing="running the checks"
rm -rf "$work"/{kernels,logs} && mkdir "$work/logs"
export NUMBA_CACHE_DIR=$work/kernels NUMBA_NUM_THREADS=2 OPENBLAS_NUM_THREADS=1
export PYTHONPATH=$work/site PYTHONPYCACHEPREFIX=$work/pycache
declare -A processes
for part in float32 float64 activations; do
  # A processor of many servers. What qemu has by default, `max`, takes twice as long, for it signs
  # addresses, and in its SME numpy's products are wrong. A GB for translated code saves an eighth
  # of the time. The part that takes longest goes first. Half an hour is for a hang.
  [ $part = float32 ] && late=0 || late=10
  nice -n "$late" timeout 1800 "$qemu" -cpu neoverse-n1 -tb-size 1024 -L "$work/root" \
    "$work/root/usr/bin/python3.13" -m tests.arm_checks $part >"$work/logs/$part" 2>&1 &
  processes[$part]=$!
done
failures=""
for part in activations float64 float32; do  # the shortest first
  status=0
  wait "${processes[$part]}" || status=$?
  printf '\n=== %s, after %d s\n%s\n' $part $SECONDS "$(<"$work/logs/$part")"
  ((status == 0)) || failures+=" $part (status $status)"
done
doing="checks of$failures"
[ -z "$failures" ]
checks=$(cat "$work"/logs/* | grep -c '^  ok ')
echo "arm64: $checks checks passed, serial and 2 threads, same bits, $SECONDS s"
