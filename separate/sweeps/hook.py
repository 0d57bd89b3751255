"""Hydra's callback of a sweep: names the folder of each job, and reports all jobs at the end.

Hydra also builds the callback for single runs, so the functions import the rest of this package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


def _job_hash(*, _root_: DictConfig) -> str:
    from separate.sweeps.identity import job_hash

    return job_hash(_root_)


# The process of a launcher imports this module with the callback, before Hydra resolves the folder of the job.
OmegaConf.register_new_resolver("job_hash", _job_hash, replace=True)


class SweepHook(Callback):
    """Refuses keys that cannot be swept; prints and writes the table; exits with the code of the first failed job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from separate.sweeps.identity import refused_key

        if key := refused_key(config):
            _exit(f"{key} does not change what is trained, so a sweep cannot compare its values; give one value", 2)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from separate.sweeps.pruning import RECORD as SEARCH
        from separate.sweeps.report import report
        from separate.sweeps.results import read

        folder = Path(str(config.hydra.sweep.dir))
        jobs = read(folder)
        if not jobs:  # e.g. with +summary=true
            return
        print(report(folder, jobs), flush=True)
        if failed := [job for job in jobs if job.state == "failed"]:
            reasons = "".join(f"\n  {job.folder}: {job.reason}" for job in failed)
            again = f"mend the reason and repeat the command with hydra.sweep.dir={folder}, which trains only these"
            if (folder / SEARCH).is_file():
                again = (
                    f"a search repeats no failed trial; to train new ones, mend the reason and repeat the command with "
                    f"hydra.sweep.dir={folder} and a larger hydra.sweeper.n_trials"
                )
            _exit(f"{len(failed)} of {len(jobs)} jobs failed; {again}:{reasons}", failed[0].exit_code)


def _exit(sentence: str, code: int) -> None:
    """Exit by SystemExit, because Hydra turns an `Exception` of a callback into a warning."""
    print(f"separate-train: {sentence}", file=sys.stderr)
    raise SystemExit(code)
