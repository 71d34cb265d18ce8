#!/bin/sh
# The GPU check without Bun, for a machine with nvcc, a GPU and a Python with PyTorch: builds the library, runs the wrappers
# of PTX and captures by themselves, kernels.py (every operation against float64, twice, and its time beside PyTorch's),
# and CUDA's sanitizers where they are installed. A stage that fails or takes too long does not keep the others from
# running, and all of it takes at most 8 minutes; one JSON file and one Markdown table in bench/results say what came of
# each. Without a GPU it compiles, runs the same on the emulator where there is a C++ compiler, says so and exits 0.
# Whole models and training steps need Bun: bench/gpu/check.ts.
# Usage: bench/gpu/check.sh [PYTHON]
set -u
started=$(date +%s)
cd "$(dirname "$0")/../.."
python=${1:-python3}
nvcc=${NVCC:-nvcc}
out=build/gpu-check
rm -rf "$out"
mkdir -p "$out"
stages=$out/stages.tsv
failures=0
seconds=480 # for all of it

# Sets limit to SECONDS, or to what is left.
within() {
  limit=$((seconds - $(date +%s) + started))
  [ "$limit" -lt "$1" ] || limit=$1
  [ "$limit" -ge 1 ] || limit=1
}

# stage TITLE SECONDS COMMAND...
stage() {
  title=$1
  within "$2"
  shift 2
  log=$out/$(printf %s "$title" | tr -c 'A-Za-z0-9' '-').log
  printf '\n== %s (%s)\n' "$title" "$log"
  begun=$(date +%s)
  timeout -k 5 "$limit" "$@" > "$log" 2>&1
  code=$?
  cat "$log"
  case $code in
    0) outcome=passed ;;
    124 | 137) outcome="took more than $limit s" ;;
    *) outcome=failed ;;
  esac
  [ "$code" -eq 0 ] || { failures=$((failures + 1)); echo "$title: $outcome"; }
  printf '%s\t%s\t%s\n' "$title" "$outcome" "$(($(date +%s) - begun))" >> "$stages"
  return "$code"
}

# compile FOLDER COMMAND SOURCE...: objects in FOLDER, as many at a time as there are processors.
compile() {
  folder=$1
  command=$2
  shift 2
  mkdir -p "$folder"
  printf '%s\n' "$@" | xargs -P "$(nproc)" -I SOURCE sh -c "$command"' -c "$1" -o "$0/$(basename "$1").o"' "$folder" SOURCE
}

# What can be checked on the emulator, in its plain build. It may take its time: the 8 minutes are a GPU's.
emulate() {
  cxx=${CXX:-c++}
  command -v "$cxx" > /dev/null || { echo "no C++ compiler found: nothing ran on the emulator"; return; }
  seconds=3600
  flags="-std=c++17 -O2 -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -x c++"
  echo "compiling for the emulator with $("$cxx" --version | head -n 1)"
  compile "$out/engine" "'$cxx' $flags" kernels/emulator/*.cpp &&
    compile "$out/emulated" "'$cxx' $flags" kernels/cuda/*.cu kernels/cpu/file.cpp &&
    "$cxx" -shared -o "$out/emulated.so" "$out"/emulated/*.o "$out"/engine/*.o &&
    "$cxx" $flags kernels/tests/wrappers.cu -x none "$out"/engine/*.o -o "$out/wrappers" &&
    "$cxx" $flags kernels/tests/captures.cu -x none "$out"/engine/*.o -o "$out/captures" ||
    { echo "the kernels did not compile for the emulator"; exit 1; }
  stage "the wrappers of PTX, emulated" 60 "$out/wrappers"
  stage "captures, emulated" 60 "$out/captures"
  if "$python" -c 'import torch' 2> /dev/null; then
    stage "every operation against float64, emulated" 900 "$python" bench/gpu/kernels.py "$out/emulated.so" --small
  else
    echo "$python has no PyTorch: single operations did not run on the emulator"
  fi
}

command -v "$nvcc" > /dev/null || nvcc=/usr/local/cuda/bin/nvcc
if ! command -v "$nvcc" > /dev/null && nvidia-smi -L 2> /dev/null | grep -q '^GPU'; then
  echo "there is a GPU, but no nvcc to compile the kernels: install the CUDA toolkit, or set NVCC to yours"
  exit 1
fi
if command -v "$nvcc" > /dev/null; then
  flags="-std=c++17 -O3 -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90a,code=sm_90a \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
  echo "compiling with $("$nvcc" --version | sed -n 's/.*release/release/p')"
  compile "$out/objects" "'$nvcc' $flags" kernels/cuda/*.cu kernels/cpu/file.cpp || { echo "the kernels did not compile"; exit 1; }
  "$nvcc" -shared -cudart static -o "$out/libmantou.so" "$out"/objects/*.o || exit 1
  stage "the wrappers of PTX: build" 120 "$nvcc" $flags -cudart static kernels/tests/wrappers.cu -o "$out/wrappers"
  stage "captures: build" 120 "$nvcc" $flags -cudart static kernels/tests/captures.cu -o "$out/captures"
else
  echo "no nvcc found: the kernels were not compiled for a GPU"
fi

if [ ! -e "$out/libmantou.so" ] || ! nvidia-smi -L > "$out/devices.txt" 2> /dev/null || ! grep -q '^GPU' "$out/devices.txt"; then
  emulate
  echo "no NVIDIA GPU that can be used here: nothing ran on one and no figure is given"
  [ "$failures" -eq 0 ] || { echo "$failures stages failed"; exit 1; }
  exit 0
fi
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem --format=csv | tee "$out/device.csv"
stage "the wrappers of PTX" 30 "$out/wrappers"
stage "captures" 30 "$out/captures"
stage "every operation against float64, and beside PyTorch" 220 \
  "$python" bench/gpu/kernels.py "$out/libmantou.so" --out "$out/kernels.json" --seconds 210
sanitizer=compute-sanitizer
command -v "$sanitizer" > /dev/null || sanitizer=$(dirname "$nvcc")/compute-sanitizer
if command -v "$sanitizer" > /dev/null; then
  for tool in memcheck racecheck; do
    stage "$tool: the wrappers" 30 "$sanitizer" --tool "$tool" --error-exitcode 1 "$out/wrappers"
    stage "$tool: every operation on small shapes" 90 "$sanitizer" --tool "$tool" --error-exitcode 1 \
      "$python" bench/gpu/kernels.py "$out/libmantou.so" --small --no-bench --worker "$out/$tool.json"
  done
else
  echo "compute-sanitizer is not installed: not run"
fi
"$python" bench/gpu/report.py "$out" bench/results || echo "the results are in $out"
[ "$failures" -eq 0 ] && echo "everything passed" || { echo "$failures stages failed"; exit 1; }
