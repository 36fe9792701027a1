"""The table of docs/performance.md, from the results that lie on disk."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_selma.running.json_files import read_json

_VERSIONS = ("nnunetv2", "torch", "blosc2", "tifffile", "numpy", "scipy", "scikit-image", "connected-components-3d")
_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def machine() -> dict[str, str]:
    """What was measured on."""
    import torch

    model = platform.processor() or "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")),
            model,
        )
    return {
        "date": date.today().isoformat(),
        "machine": f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
        + f", Python {platform.python_version()}",
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each comparison, a paragraph for each machine and day."""
    lines = [
        "| what | ours | against | ratio, median (quartiles) | wanted |",
        "|---|---|---|---|---|",
    ]
    for one in results:
        low, high = one["spread"]
        reached = "" if one["median_ratio"] >= one["target"] else ", **not reached**"
        wanted = f"{one['target']:.2g}{reached}" if one["target"] else ""
        cost_ours, cost_other = (statistics.median(one[f"costs_{side}"]) for side in ("ours", "other"))
        lines.append(
            f"| {one['what']} | {one['ours']}: {_shown(cost_ours)} {one['unit']} | {one['other']}: {_shown(cost_other)} {one['unit']} "
            f"| {one['median_ratio']:.2f} ({low:.2f} to {high:.2f}, {len(one['ratios'])} pairs) | {wanted} |"
        )
    places = sorted(
        {f"{one['machine']['machine']}; {one['machine']['versions']}; {one['machine']['date']}" for one in results}
    )
    return "\n".join([*lines, "", *(f"Measured on: {place}." for place in places)])


def _shown(cost: float) -> str:
    return f"{cost:.3g}" if cost < 1000 else f"{cost:.0f}"


def refresh(page: Path, results_folder: Path, order: Sequence[str]) -> None:
    """Put the table of all results between the page's two markers."""
    results = [
        read_json(results_folder / f"{name}.json") for name in order if (results_folder / f"{name}.json").is_file()
    ]
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    page.write_text(f"{before}{_BEGIN}\n{table(results)}\n{_END}{after}", encoding="utf-8")
