"""What a command came to, as a short table for people; each gives back the same as a plain dict for --json."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..metrics.lines import metric_lines

if TYPE_CHECKING:
    from diffusion.data.shard_set import ShardSet

    from ..champions.history import Event
    from ..gc import Collected, Finding
    from ..report import MadeReport
    from ..restore import RestoreRun
    from ..retrain import Retrained
    from ..run import RunResult
    from ..sample import SampleRun
    from ..storage import Environment
    from ..tracking import ModelVersion, TrackedRun


def show_run(result: RunResult, environment: Environment) -> None:
    """The end of `ddpm run`."""
    rows = {"reused": ", ".join(result.reused)} if result.reused else {}
    rows |= {
        "shards": f"{result.data}  ({result.digest})",
        "samples": result.samples,
        "grid": result.grid,
        **metric_rows(result.metrics),
        "model": f"{result.model}  ({'champion' if result.champion else 'not champion'}: {result.why})",
        "look": f"{ui_command(environment)}  (run {result.sample_run})",
    }
    show(rows)


def show_shards(shards: ShardSet) -> dict[str, Any]:
    """The end of `ddpm shard`."""
    counts = shards.counts
    refused = ", ".join(f"{reason} {count}" for reason, count in shards.rejects.items()) or "none"
    show({
        "shards": f"{shards.folder.uri}  ({shards.digest})",
        "images": f"{counts['train']} train, {counts['val']} val, in {len(shards.tars)} tars",
        "refused": refused,
    })  # fmt: skip
    return {**_plain(shards), "rejects": shards.rejects}


def show_verified(shards: ShardSet) -> dict[str, Any]:
    """The end of `ddpm verify`, where nothing differs."""
    num_bytes = sum(tar.num_bytes for tar in shards.tars)
    what = f"{len(shards.tars)} shards, {sum(shards.counts.values())} samples, {num_bytes} bytes"
    show({"verified": f"{shards.folder.uri}  ({shards.digest}): {what}"})
    return {**_plain(shards), "num_bytes": num_bytes}


def _plain(shards: ShardSet) -> dict[str, Any]:
    return {
        "uri": shards.folder.uri,
        "digest": shards.digest,
        "num_shards": len(shards.tars),
        "counts": shards.counts,
    }


def show_model(model: ModelVersion) -> dict[str, Any]:
    """The end of `ddpm train`."""
    show({"model": model.uri, "run": model.run_id, "data": model.tags["ddpm.dataset_uri"]})
    return {"model": model.uri, "run": model.run_id, "dataset_digest": model.tags["ddpm.dataset_digest"]}


def show_samples(samples: SampleRun) -> dict[str, Any]:
    """The end of `ddpm sample`."""
    metrics = samples.tracked.metrics
    grid = f"{samples.folder.uri}/grid.png"
    show({"samples": samples.folder.uri, "grid": grid, **metric_rows(metrics), "run": samples.tracked.run_id})
    return {"samples": samples.folder.uri, "grid": grid, "run": samples.tracked.run_id, "metrics": metrics}


def show_evaluation(run: TrackedRun) -> dict[str, Any]:
    """The end of `ddpm evaluate`."""
    show({**metric_rows(run.metrics), "run": run.run_id})
    return {"run": run.run_id, "metrics": run.metrics}


def show_report(report: MadeReport) -> dict[str, Any]:
    """The end of `ddpm report`."""
    show({"report": report.uri, "run": f"{report.run_id}  (there, too: report.html)"})
    return {"report": report.uri, "run": report.run_id}


def show_restored(restored: RestoreRun) -> dict[str, Any]:
    """The end of `ddpm restore`."""
    metrics, grid = restored.tracked.metrics, f"{restored.folder.uri}/grid.png"
    rows = {"restored": f"{restored.folder.uri}/pictures", "grid": grid}
    if "psnr" in metrics:
        rows[f"of {metrics['n']:.0f}"] = (
            f"{metrics['psnr']:.2f} dB PSNR restored, {metrics['psnr_damaged']:.2f} dB damaged (more is nearer)"
        )
    show({**rows, "run": restored.tracked.run_id})
    return {"restored": restored.folder.uri, "grid": grid, "run": restored.tracked.run_id, "metrics": metrics}


def show_collected(collected: Collected, environment: Environment) -> dict[str, Any]:
    """The end of `ddpm gc`."""
    lists = {
        "deleted" if collected.deleted else "garbage": collected.garbage,
        "untracked": collected.untracked,
        "kept": collected.kept,
    }
    for title, findings in lists.items():
        for row in columns([_row(title, found) for found in findings]):
            print(row, file=sys.stderr)
    num_runs = sum(found.thing.kind == "run" for found in collected.garbage)
    rows = {"total": f"{len(collected.garbage)} things, {collected.num_bytes:,} bytes"}
    if collected.deleted and num_runs:
        rows["in MLflow"] = f"{num_runs} runs are marked as deleted; `mlflow gc` takes their rows out of its database"
        if environment.artifact_root is None:
            rows["in MLflow"] += ", and their files out of its server's store"
    elif not collected.deleted and collected.garbage:
        rows["next"] = "nothing was deleted; the same command with --delete does it"
    show(rows)
    plain = {title: [_plain_finding(found) for found in findings] for title, findings in lists.items()}
    return {**plain, "num_bytes": collected.num_bytes}


def _row(title: str, found: Finding) -> list[str]:
    thing = found.thing
    return [title, thing.kind, f"{thing.num_bytes:,} B", f"{found.age_days:.0f} d", thing.id, found.why]


def _plain_finding(found: Finding) -> dict[str, Any]:
    thing = found.thing
    row = {"id": thing.id, "kind": thing.kind, "num_bytes": thing.num_bytes}
    return {**row, "age_days": round(found.age_days, 2), "why": found.why}


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def show_retrained(result: Retrained) -> dict[str, Any]:
    """The end of `ddpm retrain`."""
    rows = {"retrain": result.outcome, "why": "\n".join(result.reasons)}
    rows |= {name: value for name in ("candidate", "champion", "report", "run") if (value := getattr(result, name))}
    show(rows)
    return asdict(result)


def show_champions(name: str, events: list[Event], champion: ModelVersion | None) -> dict[str, Any]:
    """Who was champion when, a line a change, and who is."""
    rows = [[event.at[:19] + "Z", f"{name}/{event.version}", event.by.split()[0], event.why] for event in events]
    for row in columns(rows):
        print(row, file=sys.stderr)
    uri = "" if champion is None else champion.uri
    show({"champion": uri or "nobody"})
    return {"champion": uri, "history": [asdict(event) for event in events]}


def metric_rows(metrics: dict[str, float]) -> dict[str, str]:
    """How good the samples are, a line a metric, with how many samples that is of."""
    lines = metric_lines(metrics)
    return {f"of {metrics['n']:.0f}": "\n".join(lines)} if lines else {}


def ui_command(environment: Environment) -> str:
    """What opens the MLflow UI on these runs."""
    program = "ddpm" if shutil.which("ddpm") else os.path.relpath(sys.argv[0])
    return shlex.join([program, "ui", *environment.flags])


def show(rows: dict[str, str]) -> None:
    """Two columns on stderr (stdout is for --json); nothing is cut or wrapped, so that a path can be copied."""
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        print(f"{name:<{width}}" + value.replace("\n", "\n" + " " * width), file=sys.stderr)


def show_jobs(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The jobs of a cluster, a line each."""
    rows = [
        [job["job"], job["status"], _since(job["started"]), _lasted(job["seconds"]), job["command"]] for job in jobs
    ]
    for row in columns(rows) or ["no jobs"]:
        print(row, file=sys.stderr)
    return {"jobs": jobs}


def show_job(job: dict[str, Any]) -> dict[str, Any]:
    """One job of a cluster."""
    show({
        "job": job["job"],
        "status": job["status"],
        "command": job["command"],
        "started": _since(job["started"]),
        "lasted": _lasted(job["seconds"]),
        "message": job["message"] or "",
    })  # fmt: skip
    return job


def _since(started: float | None) -> str:
    return "" if started is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(started))


def _lasted(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"
