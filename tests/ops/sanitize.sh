#!/usr/bin/env bash
# Runs the tests of the CUDA kernels under compute-sanitizer: accesses out of bounds, races in shared memory, barriers
# that threads miss. Needs a device, and takes many times as long as the tests alone; arguments are
# for pytest, such as -k gram.
set -euo pipefail
cd "$(dirname "$0")/../.."

for tool in memcheck racecheck synccheck; do
    printf '\n== %s\n' "$tool"
    # Torch's allocator hands out pieces of large blocks, which would hide accesses beyond a piece. Graphs need it.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
        --kernel-regex kns=journey "${PYTHON:-python3}" -m pytest -q tests/ops/test_cuda.py \
        --deselect tests/ops/test_cuda.py::test_can_be_captured_in_a_graph "$@"
done
