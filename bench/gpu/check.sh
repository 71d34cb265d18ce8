#!/bin/sh
# The GPU check without Bun, for a machine with nvcc, a GPU and a Python with PyTorch: builds the library, runs the wrappers
# of PTX by themselves, the sanitizers of CUDA where they are installed, and kernels.py (every operation against float64, twice,
# and the benchmarks beside PyTorch). Results go to bench/results. Without a GPU it compiles, says so and exits 0.
# Usage: bench/gpu/check.sh [PYTHON]
set -eu
cd "$(dirname "$0")/../.."
python=${1:-python3}
nvcc=${NVCC:-nvcc}
out=build/gpu-check
mkdir -p "$out" bench/results

command -v "$nvcc" > /dev/null || { echo "no nvcc found: nothing was checked"; exit 0; }
flags="-std=c++17 -O3 -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90a,code=sm_90a \
  -Werror all-warnings -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
echo "compiling with $("$nvcc" --version | sed -n 's/.*release/release/p')"
pids=""
for source in kernels/cuda/*.cu kernels/cpu/file.cpp; do
  "$nvcc" $flags -c "$source" -o "$out/$(basename "$source").o" &
  pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
"$nvcc" -shared -cudart static -o "$out/libmantou.so" "$out"/*.o
"$nvcc" $flags -cudart static kernels/tests/wrappers.cu -o "$out/wrappers"

if ! nvidia-smi -L > "$out/devices.txt" 2> /dev/null || ! grep -q '^GPU' "$out/devices.txt"; then
  echo "no NVIDIA GPU here: the kernels were compiled, nothing was run and no figure is given"
  exit 0
fi
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem --format=csv
"$out/wrappers"
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$out/wrappers" > /dev/null
    compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
      "$python" bench/gpu/kernels.py "$out/libmantou.so" --small --no-bench
  done
else
  echo "compute-sanitizer is not installed: not run"
fi
"$python" bench/gpu/kernels.py "$out/libmantou.so" --results bench/results
