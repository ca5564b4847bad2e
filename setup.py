"""What setup.cfg cannot say: packages are found, and two folders of data ship inside `align`."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["align", "align.*", "pts", "pts.*"]),
        "align.chat_templates",
        "align.recipes",
    ]
)
