"""The package as a user meets it first: cheap to import, everything in reach."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

import headscope as hs

HEAVY = ("torch", "transformers", "pandas", "numpy", "plotly", "xarray", "pyarrow", "scipy", "dash", "nnsight")


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nsys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


HELP = "import contextlib, headscope.cli\nwith contextlib.suppress(SystemExit):\n    headscope.cli.main({})"


@pytest.mark.parametrize(
    "code",
    ["import headscope", "import headscope.cli", HELP.format(["--help"]), HELP.format(["rank", "--help"])],
    ids=["package", "cli", "help", "rank-help"],
)
def test_imports_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_every_public_name_resolves() -> None:
    for name in hs.__all__:
        assert getattr(hs, name) is not None
    assert set(hs.__all__) == set(dir(hs))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hs.nothing


def test_version_matches_the_installed_distribution() -> None:
    assert hs.__version__ == importlib.metadata.version("headscope")


def test_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "headscope", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"headscope {hs.__version__}"
