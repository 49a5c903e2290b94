"""The modules of benchmarks/, which import each other by their bare names."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))
import baselines  # noqa: E402
import cases  # noqa: E402
import choices  # noqa: E402
import compiled  # noqa: E402
import counters  # noqa: E402
import cross_entropy  # noqa: E402
import gpu_results  # noqa: E402
import gpu_steps  # noqa: E402
import gpu_summary  # noqa: E402
import graphs  # noqa: E402
import head  # noqa: E402
import head_blocks  # noqa: E402
import largest_batch  # noqa: E402
import measuring  # noqa: E402
import on_gpu  # noqa: E402
import report  # noqa: E402
import row_settings  # noqa: E402
import run  # noqa: E402
import sass  # noqa: E402
import settings  # noqa: E402
import sweep  # noqa: E402
import worker  # noqa: E402

sys.path.remove(str(BENCHMARKS))

__all__ = [
    "BENCHMARKS",
    "baselines",
    "cases",
    "choices",
    "compiled",
    "counters",
    "cross_entropy",
    "gpu_results",
    "gpu_steps",
    "gpu_summary",
    "graphs",
    "head",
    "head_blocks",
    "largest_batch",
    "measuring",
    "on_gpu",
    "report",
    "row_settings",
    "run",
    "sass",
    "settings",
    "sweep",
    "worker",
]
