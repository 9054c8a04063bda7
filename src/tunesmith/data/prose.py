"""A page of plain prose that ships with the package: what a base could do before it was tuned to
something else."""

from importlib.resources import files


def lines() -> list[str]:
    return files("tunesmith.data").joinpath("prose.txt").read_text("utf-8").splitlines()
