"""The wheel: conf/ travels inside it, and `bdx` works from it in any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_runs_from_any_folder(tmp_path: Path) -> None:
    built = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(CHECKOUT),
    ]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("bdx-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}  # stands before the editable install

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "backdoorbench", *words]
        return subprocess.run(call, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)

    where = "import backdoorbench.config.compose as c; print(c.conf_dir())"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert found.stdout.strip() == str(site / "backdoorbench" / "conf")
    assert "badnets" in run("list", "attack").stdout
    done = run(
        "attack=badnets", "defense=fst", "dataset.train_size=200", "model.width=8", "train.epochs=1", "force=true"
    )
    assert done.returncode == 0, done.stderr
    assert list((elsewhere / "outputs" / "runs").glob("*/record.json"))
