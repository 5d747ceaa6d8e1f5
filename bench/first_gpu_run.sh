#!/usr/bin/env bash
# The first run on a GPU, in under ten minutes: builds for the GPU at hand, runs the cuda tests, compute-sanitizer and the
# quick bench, times what the kernels' headers predict, and writes FOLDER/first-run.md with "expected" beside "seen".
#
#     bench/first_gpu_run.sh FOLDER              a part that has succeeded before is not run again
#     bench/first_gpu_run.sh --dry-run FOLDER    says what it would run, and writes the table of what was seen so far
#
# PYTHON names the interpreter, python3 by default. A part that fails or runs out of time is noted, and the next runs.
set -uo pipefail

dry=0
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
if [ $# -ne 1 ]; then sed -n '2,8p' "$0" >&2; exit 2; fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}

clocks() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw --format=csv,noheader | head -n 1
}

# part NAME SECONDS COMMAND...: runs the command and keeps its status, its time, and the clocks before and after.
part() {
    local name=$1 seconds=$2 begin=$SECONDS status
    shift 2
    if [ "$dry" = 1 ]; then echo "$name, at most $seconds s: $*"; return; fi
    if [ "$(cut -d' ' -f1 "$out/$name.status" 2>/dev/null)" = 0 ]; then echo "$name: done before"; return; fi
    echo "== $name"
    clocks >"$out/$name.clocks"
    timeout --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1
    status=$?
    clocks >>"$out/$name.clocks"
    echo "$status $((SECONDS - begin))" >"$out/$name.status"
    echo "$name: status $status after $((SECONDS - begin)) s"
}

cat >"$out/predictions.py" <<'END'
"""Times what the headers of csrc/cuda predict, or writes the table of the first run."""

import json
import statistics
import sys
from pathlib import Path

PARTS = ("build", "tests", "sanitizer", "predictions", "bench")

# Of each: the file whose header predicts it ("" where none does), what it says, what is timed, and how.
CASES = (
    ("sketch.cu", "16 us", "sketch, float32", "sketch(float32)"),
    ("", "", "sketch, bfloat16", "sketch(bfloat16)"),
    ("sketch_many.cu", "5 us", "sketch_many of 250 vectors", "many()"),
    ("sketch_outer.cu", "4 us", "sketch_outer 3x3, bfloat16, one sample of 64", "outer(bfloat16)"),
    ("", "", "sketch_outer 3x3, float32, one sample of 64", "outer(float32)"),
    ("norm_grads.cu", "14 us", "norm_grads, group norm of 128 x 128 x 1024, bfloat16", "norm()"),
    ("project.cu", "2.9 ms", "project, signs, bfloat16", "signs(bfloat16)"),
    ("project.cu", "11 ms", "project, signs, float32", "signs(float32)"),
    ("gram.cu", "0.53 ms", "gram of 4096 x 4096, float32", "gram(4096, 4096, float32)"),
    ("", "", "gram of 4096 x 4096, bfloat16", "gram(4096, 4096, bfloat16)"),
    ("gram.cu", "0.45 ms", "gram of 50,000 x 1024, float32", "gram(50_000, 1024, float32)"),
    ("pack_rows.cu", "0.28 ms", "pack_rows of 65,536 x 4096, 8 bits", "pack(8)"),
    ("pack_rows.cu", "1.4 ms", "pack_rows of 65,536 x 4096, 4 bits", "pack(4)"),
    ("packed_products.cu", "0.85 ms", "packed_products of a million x 4096, 1 query", "products(1)"),
    ("packed_products.cu", "1.6 ms", "packed_products of a million x 4096, 8 queries", "products(8)"),
    ("philox.cu", "26 us", "philox_normal, 20 draws of 256 images", "normals()"),
)


def calls(torch, device, scale=1):
    """Of each case its name, what is timed, and by how much the time is divided; sizes are divided by `scale`."""
    from journey import ops
    from journey.ops.cuda import CudaKernels
    from journey.ops.geometry import ConvGeometry

    def randn(*shape, dtype=torch.float32):
        return torch.randn(*shape, device=device).to(dtype)

    def zeros(*shape, dtype=torch.float32):
        return torch.zeros(*shape, device=device, dtype=dtype)

    def sketch(dtype):
        features, grads = zeros(32, 4096), randn(32, 256 // scale, 2304, dtype=dtype)
        return lambda: ops.sketch_(features, grads, key=1), 1

    def many():
        count = 250 // scale
        features, grads = zeros(32, 4096), randn(32, 240 * count)
        return lambda: ops.sketch_many_(features, grads, keys=range(count), shapes=[(1, 240)] * count), 1

    def outer(dtype):
        samples = 64 // scale
        a, g = (randn(4 * samples, 256, 16, 16, dtype=dtype) for _ in range(2))
        features, conv = zeros(samples, 4096), ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1))
        return lambda: ops.sketch_outer_(features, a, g, key=1, conv=conv), samples

    def norm():
        x, g = (randn(128 // scale, 128, 1024, dtype=torch.bfloat16) for _ in range(2))
        return lambda: ops.norm_grads(x, g, groups=32, eps=1e-5), 1

    def signs(dtype):
        features, grads = zeros(64 // scale, 4096), randn(64 // scale, 4_400_000 // scale**2, dtype=dtype)
        return lambda: ops.project_(features, grads, key=1, kind="rademacher"), 1

    def gram(samples, dim, dtype):
        dim //= scale
        result, features = zeros(dim, dim, dtype=torch.float64), randn(samples // scale, dim, dtype=dtype)
        return lambda: ops.accumulate_gram_(result, features), 1

    def pack(bits):
        rows = randn(65_536 // scale, 4096)
        return lambda: torch.ops.journey.pack_rows(rows, bits), 1

    def products(num_queries):
        num_rows = 1_000_000 // scale
        packed = torch.ones(num_rows, 4096, device=device, dtype=torch.int8)
        scales, queries = torch.ones(num_rows, device=device), randn(num_queries, 4096)
        out = zeros(num_queries, num_rows)
        return lambda: ops.packed_products_(out, queries, packed, scales, 8), 1

    def normals():
        keys = torch.arange(20 * 256 // scale, device=device)
        return lambda: ops.philox_normal(keys, keys, 3072), 1

    names = {f.__name__: f for f in (sketch, many, outer, norm, signs, gram, pack, products, normals)}
    names |= {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for _, _, name, call in CASES:
        yield name, *eval(call, names)


def measure(out):
    """Median of 20 runs of each case in milliseconds, the caches flushed before each."""
    import torch

    flush, seen = torch.empty(1 << 28, dtype=torch.uint8, device="cuda"), {}
    for name, run, parts in calls(torch, "cuda"):
        times = []
        for _ in range(23):
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / parts)
        seen[name] = statistics.median(times[3:])  # the first allocate
        out.write_text(json.dumps(seen))
        print(name, seen[name], "ms", flush=True)


def text(milliseconds):
    """A time with three digits."""
    return f"{milliseconds * 1000:.3g} us" if milliseconds < 1 else f"{milliseconds:.3g} ms"


def table(folder):
    """The first run as a page of Markdown."""

    def read(name):
        path = folder / name
        return path.read_text() if path.exists() else ""

    lines = ["# First run on a GPU", "", "| part | result | seconds | clocks before / after |", "|---|---|---|---|"]
    for part in PARTS:
        status, seconds = read(f"{part}.status").split() or ("none", "–")
        said = {"0": "passed", "124": "out of time", "none": "not run"}.get(status, f"failed ({status})")
        clocks = " / ".join(read(f"{part}.clocks").splitlines()) or "–"
        lines.append(f"| {part} | {said} | {seconds} | {clocks} |")
    seen = json.loads(read("predictions.json") or "{}")
    lines += ["", "Expected is what the kernel's header says of an H200; seen is from call to end, launches included."]
    lines += ["", "| what | expected | seen |", "|---|---|---|"]
    lines += [f"| {name} | {says or '–'} | {text(seen[name]) if name in seen else '–'} |" for _, says, name, _ in CASES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    else:
        Path(sys.argv[2], "first-run.md").write_text(table(Path(sys.argv[2])))
END

part build 150 env JOURNEY_CUDA=on "$python" -m pip install --no-deps -e .
part tests 120 "$python" -m pytest -q -m cuda tests/ops
part sanitizer 100 env PYTHON="$python" tests/ops/sanitize.sh -k two_runs
part predictions 40 "$python" "$out/predictions.py" measure "$out/predictions.json"
part bench 150 "$python" -m bench --quick --out "$out/bench.json"

"$python" "$out/predictions.py" table "$out" || exit 1
echo "written to $out/first-run.md"
