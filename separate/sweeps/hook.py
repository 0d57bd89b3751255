"""Hydra's callback of a sweep: names the folder of each job before it starts, and reports all jobs at the end.

Single runs build the callback too, so everything else is imported where a sweep needs it.
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


# A launcher's process loads this module with the callback, before Hydra resolves the folder of a job there.
OmegaConf.register_new_resolver("job_hash", _job_hash, replace=True)


class SweepHook(Callback):
    """Refuses keys that cannot be swept; at the end prints and writes the table, and exits with 1 if jobs failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from separate.sweeps.identity import refused_key

        if key := refused_key(config):
            _exit(f"{key} does not change what is trained, so a sweep cannot compare its values; give one value", 2)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from separate.sweeps.report import report
        from separate.sweeps.results import read

        folder = Path(str(config.hydra.sweep.dir))
        jobs = read(folder)
        if not jobs:  # a description of networks, +summary=true
            return
        print(report(folder, jobs), flush=True)
        if failed := [job for job in jobs if job.state == "failed"]:
            reasons = "".join(f"\n  {job.folder}: {job.reason}" for job in failed)
            again = f"mend the reason and repeat the command with hydra.sweep.dir={folder}, which trains only these"
            _exit(f"{len(failed)} of {len(jobs)} jobs failed; {again}:{reasons}", failed[0].exit_code)


def _exit(sentence: str, code: int) -> None:
    """Hydra turns an `Exception` of a callback into a warning, but not this."""
    print(f"separate-train: {sentence}", file=sys.stderr)
    raise SystemExit(code)
