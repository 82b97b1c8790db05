"""What setup.cfg cannot say: datasets/reference is installed with the package, as probing/reference_data."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["probing", "probing.*"]), "probing.reference_data"],
    package_dir={"probing.reference_data": "datasets/reference"},
)
