"""The installed package: every module and profile is in the wheel, and it works from another folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SUFFIXES = (".py", ".toml", ".html", ".js", ".css")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves a build folder where it works."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("the project is no git checkout here")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, source], check=True
    )
    return next(out.glob("*.whl"))


def test_every_module_and_profile_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    folders = ("simulator", "schedules", "commands", "hardware_profiles", "model_profiles")
    wanted = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    wanted += [*ROOT.glob("examples/*.yaml"), *ROOT.glob("examples/*_published.toml")]
    wanted += [ROOT / name for name in ("__init__.py", "__main__.py", "cli.py", "py.typed")]
    assert {f"simpipe/{path.relative_to(ROOT)}" for path in wanted} - inside == set()


def test_the_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import simpipe; print(simpipe.__file__); print(simpipe.program('dualpipe', ranks=2, microbatches=4).slots)"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    file, slots = run.stdout.split()
    assert Path(file).is_relative_to(tmp_path / "site")
    assert int(slots) > 0
