#!/usr/bin/env python3
"""Times programs that speak the protocol of peer.rs in turn, so that the machine's drift cancels, and compares results.

    cargo build --release -p benches --bench peer
    cargo build --release --manifest-path benches/burn/Cargo.toml
    python3 benches/compare.py ours=target/release/deps/peer-HASH burn=benches/burn/target/release/burn-peer

A line is a case: the median time of each program in ms, and that of the last over that of the first. Options: --only
WORDS (cases whose name has all of them), --reps N (7), --ms N (60, of a repetition). The environment picks the driver.
"""
import argparse
import array
import json
import statistics
import subprocess
import tempfile

ROWS = [(1024, 1024), (4096, 4096), (1 << 20, 8), (8, 1 << 20), (512, 4608)]
LAYERS = [(1, 1024, 1024), (8, 4096, 4096), (64, 1024, 1024), (256, 784, 512), (512, 512, 512), (1024, 1024, 1024),
          (33, 257, 129)]
# positions of x, channels in and out, taps, stride, dilation, padding, groups
CONVS = [
    ("conv1d_fwd", 172, 80, 512, 7, 1, 1, 3, 1),
    ("conv_transposed1d_fwd", 172, 512, 256, 16, 8, 1, 4, 1),
    ("conv1d_fwd", 1376, 256, 256, 11, 1, 5, 25, 1),
    ("conv1d_fwd", 11008, 128, 128, 7, 1, 3, 9, 1),
    ("conv1d_fwd", 22016, 64, 64, 7, 1, 3, 9, 1),
    ("conv1d_fwd", 44032, 32, 32, 3, 1, 1, 1, 1),
    ("conv1d_fwd", 44032, 32, 1, 7, 1, 1, 3, 1),
    ("conv1d_fwd", 2000, 256, 512, 1, 1, 1, 0, 1),
    ("conv1d_fwd", 512, 256, 512, 41, 4, 1, 20, 16),
    ("conv1d_fwd", 688, 768, 768, 7, 1, 1, 3, 768),
]


def cases():
    for op in ["norm", "rescale"]:
        for n, k in ROWS:
            yield f"{op} {n}x{k}", {"op": op, "m": 0, "k": k, "n": n}
    for op in ["matmul", "linear_fwd", "linear_step"]:
        for m, k, n in LAYERS:
            yield f"{op} {m}x{k}x{n}", {"op": op, "m": m, "k": k, "n": n}
    for op, m, k, n, taps, stride, dilation, padding, groups in CONVS:
        name = f"{op} {k}>{n} k{taps} s{stride} d{dilation} g{groups} T{m}"
        yield name, {"op": op, "m": m, "k": k, "n": n, "taps": taps, "stride": stride, "dilation": dilation,
                     "padding": padding, "groups": groups}


class Worker:
    def __init__(self, argument):
        self.name, path = argument.split("=", 1)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([path], text=True, **pipes)
        self.file = tempfile.NamedTemporaryFile()

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "it ended"}

    def results(self):
        values = array.array("f")
        values.frombytes(open(self.file.name, "rb").read())
        return values


def difference(a, b):
    """Of all results together, relative; NaN if they are not as many."""
    if len(a) != len(b):
        return float("nan")
    squares = sum((x - y) ** 2 for x, y in zip(a, b))
    return (squares / max(sum(x * x for x in a), 1e-300)) ** 0.5


def main():
    parser = argparse.ArgumentParser(description="Times programs in turn.")
    parser.add_argument("workers", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--only", default="")
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--ms", type=float, default=60)
    args = parser.parse_args()
    workers = [Worker(argument) for argument in args.workers]
    for name, case in cases():
        if not all(word in name for word in args.only.split()):
            continue
        ready = []
        for worker in workers:
            answer = worker.ask(cmd="setup", case=case, variant="", out=worker.file.name, target_ms=args.ms)
            if "handle" in answer:
                ready.append((worker, answer["handle"], []))
            else:
                print(f"{name}: {worker.name}: {answer.get('error')}")
        for _ in range(args.reps):
            for worker, handle, times in ready:
                times.append(worker.ask(cmd="time", handle=handle)["secs"])
        medians = [1e3 * statistics.median(times) for _, _, times in ready]
        text = "  ".join(f"{worker.name} {ms:9.3f}" for (worker, _, _), ms in zip(ready, medians))
        if len(ready) > 1:
            off = max(difference(ready[0][0].results(), worker.results()) for worker, _, _ in ready[1:])
            text += f"  {ready[-1][0].name}/{ready[0][0].name} {medians[-1] / medians[0]:6.2f}  results differ by {off:.0e}"
        print(f"{name:44} {text}", flush=True)
        for worker in workers:
            worker.ask(cmd="clear")


main()
