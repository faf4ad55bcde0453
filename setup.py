"""Package musemo with the facts of settings.ini; notebooks and kernel travel along."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini", encoding="utf-8")
facts = parser["DEFAULT"]
extras = {name: facts[f"{name}_requirements"].split() for name in ("demo", "kaggle", "log", "dev")}

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=facts["author"],
    license="Apache-2.0",
    keywords=facts["keywords"],
    url=facts["git_url"],
    python_requires=f">={facts['min_python']}",
    packages=["musemo", "musemo.notebooks", "musemo.kaggle_kernel"],
    package_dir={
        "musemo": "musemo",
        "musemo.notebooks": "nbs",
        "musemo.kaggle_kernel": "kaggle",
    },
    package_data={
        "musemo": ["templates/*"],
        "musemo.notebooks": ["*.ipynb"],
        "musemo.kaggle_kernel": ["*.ipynb", "*.json"],
    },
    install_requires=facts["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": facts["console_scripts"].splitlines()},
    zip_safe=False,
)
