"""What is run while working on this repository: ``nox -s tests``, or lint, docs, bench, spills, full."""

import nox

nox.options.sessions = ["tests", "lint"]


@nox.session
def tests(session: nox.Session) -> None:
    """Install as a user does and run the tests, such as ``nox -s tests -- tests/ops``."""
    session.install("-c", "constraints.txt", ".[test]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, layers and the format of C++."""
    session.install("-c", "constraints.txt", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    sources = session.run("git", "ls-files", "*.h", "*.cpp", "*.cu", external=True, silent=True, log=False)
    session.run("clang-format", "--dry-run", "--Werror", *str(sources).split())


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/."""
    session.install("-c", "constraints.txt", ".[docs]")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the kernels and featurizing, such as ``nox -s bench -- --only sketch``."""
    session.install("-c", "constraints.txt", "-e", ".")  # in place: python -m takes the package of this folder
    session.run("python", "-m", "bench", "--quick", *session.posargs)


@nox.session(venv_backend="none")
def spills(session: nox.Session) -> None:
    """Compile every CUDA kernel and fail on registers that spill; needs nvcc."""
    session.run(".ci/spills", *session.posargs, external=True)


@nox.session
def full(session: nox.Session) -> None:
    """Run what takes too long for CI: slow tests, stores of a million rows, processes that die. Needs 10 GB of disk."""
    session.install("-c", "constraints.txt", "-e", ".[test,app]")
    session.run("pytest", "-m", "slow")
    session.run("python", "-m", "bench.scale")
    session.run("python", "-m", "bench.scale.growth")
