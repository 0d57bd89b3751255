"""separate-infer: separate recordings to stem files."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from separate.cli import reporting_errors
from separate.process import tune


def _parser() -> argparse.ArgumentParser:
    """argparse, because Hydra's grammar reserves characters that file names may contain."""
    parser = argparse.ArgumentParser(
        prog="separate-infer",
        description="Separate recordings into OUT/NAME/SOURCE.wav, with the length, sample rate and channels of the "
        "input.",
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="audio files, or folders of them")
    checkpoint = "a run's folder or a checkpoint (default: the newest run in this folder)"
    parser.add_argument("-c", "--checkpoint", metavar="RUN", help=checkpoint)
    parser.add_argument("-o", "--out", default="separated", type=Path, help="folder for the stems (default: separated)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument(
        "--format",
        default="float32",
        choices=("float32", "pcm16", "pcm24"),
        help="sample format; PCM lowers all stems by one common gain where they would clip (default: float32)",
    )
    parser.add_argument("--chunk", default=10.0, type=float, help="seconds separated at a time (default: 10)")
    parser.add_argument("--overlap", default=2.0, type=float, help="seconds cross-faded between chunks (default: 2)")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="another package whose network the checkpoint may build; loading it runs that package's code",
    )
    return parser


def main() -> None:
    tune()
    # exit with an exception, so that partial files are removed
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with reporting_errors("separate-infer"):
            _infer(_parser().parse_args())
    finally:
        signal.signal(signal.SIGTERM, before)


def _infer(arguments: argparse.Namespace) -> None:
    from separate import checkpoint
    from separate.compose import check_overlap
    from separate.config import EvalConfig
    from separate.inference.files import plan, refuse_overwriting, separate_file
    from separate.process import release, settle
    from separate.validation import options

    for name in ("chunk", "overlap"):
        options(EvalConfig)[name].check(f"--{name}", getattr(arguments, name))
    check_overlap(arguments.chunk, arguments.overlap, "--")
    jobs = plan(arguments.inputs, arguments.out)
    path = checkpoint.find(arguments.checkpoint)
    print(f"checkpoint: {path}")
    settle()
    separator = checkpoint.load(path, arguments.device, arguments.trust)
    refuse_overwriting(jobs, separator.sources)
    for job in jobs:
        gain = separate_file(separator, job, arguments.format, arguments.chunk, arguments.overlap)
        release()
        lowered = "" if gain == 1 else f" (all lowered by one gain of {gain:.3f} so that none clips)"
        print(f"{job.path} -> {job.folder}/{{{','.join(separator.sources)}}}.wav{lowered}")


if __name__ == "__main__":
    main()
