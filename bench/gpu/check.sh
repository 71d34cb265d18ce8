#!/bin/sh
# The GPU check without Bun, for a machine with nvcc, a GPU and a Python with PyTorch: builds the library, runs the wrappers
# of PTX and captures by themselves, kernels.py (every operation against float64, twice, and its time beside PyTorch's),
# and CUDA's sanitizers where they are installed. A stage that fails or takes too long does not keep the others from
# running, and all of it takes at most 8 minutes; one JSON file and one Markdown table in bench/results say what came of
# each. Without a GPU it compiles, says so and exits 0.
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

# Sets limit to SECONDS, or to what is left of the 8 minutes.
within() {
  limit=$((480 - $(date +%s) + started))
  [ "$limit" -lt "$1" ] || limit=$1
  [ "$limit" -ge 1 ] || limit=1
}

# stage TITLE SECONDS COMMAND...
stage() {
  title=$1
  within "$2"
  shift 2
  printf '\n== %s\n' "$title"
  begun=$(date +%s)
  timeout -k 5 "$limit" "$@"
  code=$?
  case $code in
    0) outcome=passed ;;
    124 | 137) outcome="took more than $limit s" ;;
    *) outcome=failed ;;
  esac
  [ "$code" -eq 0 ] || { failures=$((failures + 1)); echo "$title: $outcome"; }
  printf '%s\t%s\t%s\n' "$title" "$outcome" "$(($(date +%s) - begun))" >> "$stages"
  return "$code"
}

command -v "$nvcc" > /dev/null || nvcc=/usr/local/cuda/bin/nvcc
command -v "$nvcc" > /dev/null || { echo "no nvcc found: nothing was checked"; exit 0; }
flags="-std=c++17 -O3 -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90a,code=sm_90a \
  -Werror all-warnings -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
echo "compiling with $("$nvcc" --version | sed -n 's/.*release/release/p')"
cores=$(nproc)
ls kernels/cuda/*.cu kernels/cpu/file.cpp | xargs -P "$cores" -I SOURCE \
  sh -c '"$0" '"$flags"' -c "$1" -o "$2/$(basename "$1").o"' "$nvcc" SOURCE "$out" || { echo "the kernels did not compile"; exit 1; }
"$nvcc" -shared -cudart static -o "$out/libmantou.so" "$out"/*.o || exit 1
stage "the wrappers of PTX: build" 120 "$nvcc" $flags -cudart static kernels/tests/wrappers.cu -o "$out/wrappers"
stage "captures: build" 120 "$nvcc" $flags -cudart static kernels/tests/captures.cu -o "$out/captures"

if ! nvidia-smi -L > "$out/devices.txt" 2> /dev/null || ! grep -q '^GPU' "$out/devices.txt"; then
  echo "no NVIDIA GPU here: the kernels were compiled, nothing was run and no figure is given"
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
