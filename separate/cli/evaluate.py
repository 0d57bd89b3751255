"""separate-eval: score a trained separator against references."""

from __future__ import annotations

from typing import TYPE_CHECKING

from separate.cli import in_job, run_hydra

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(cfg: DictConfig) -> float | None:
    """Score one split as a table, files and a report, and return the mean SI-SDR improvement."""
    return in_job("separate-eval", lambda: _evaluate(cfg))


def _evaluate(cfg: DictConfig) -> float | None:
    from separate import checkpoint
    from separate.compose import evaluation_data, from_hydra
    from separate.config import CacheConfig, EvalConfig
    from separate.data import open_split
    from separate.data.storage.download import refuse_commands
    from separate.device import choose_device
    from separate.evaluation import recordings, report
    from separate.evaluation.metrics import load_metrics
    from separate.process import settle

    config = from_hydra(cfg, EvalConfig)
    metrics = load_metrics(config.metrics)
    path = checkpoint.find(config.run)
    print(f"checkpoint: {path}")
    contents = checkpoint.read(path)
    data = evaluation_data(contents["config"]["data"], config.data, config.trust)
    refuse_commands(vars(data), config.data)
    settle()
    separator = checkpoint.restore(contents, config.trust).to(choose_device(config.device))
    stored = contents["config"].get("cache", {})
    cache = CacheConfig(folder=stored.get("folder"), limit=stored.get("limit"))  # of decoded and downloaded files
    examples = open_split(data, config.split, contents["config"]["seed"], cache)

    results = recordings.evaluate(separator, examples, config.chunk, config.overlap, metrics)
    other = [] if config.data.get("_target_") is None else [data.name]
    other += [] if path.stem == "best" else [path.stem]
    folder = checkpoint.run_folder(path) / "eval" / "-".join([*other, config.split])
    about = {"checkpoint": str(path), "split": config.split, "data": data.name, "root": getattr(data, "root", None)}
    summary = report.write(results, about, folder)
    print(report.table(summary))
    print(f"scores: {folder}/scores.csv, summary.json\nreport: {folder}/report.html")
    return summary["scores"]["model"]["all"]["si_sdri"]["mean"]


def main() -> None:
    run_hydra("separate-eval", evaluate, "eval")


if __name__ == "__main__":
    main()
