"Everything is set in settings.ini: edit there, not here."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
licenses = {"apache2": "Apache-2.0 AND OFL-1.1"} # the code, and the sprites
statuses = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable", "6 - Mature", "7 - Inactive"]
pythons = ["3.10", "3.11", "3.12"]
supported = pythons[pythons.index(cfg["min_python"]):]

def front_page() -> str: # README.md for the index, where links within the repository need its address
    page, inside = Path("README.md").read_text(encoding="utf-8"), r"\]\((?!\w+:|#)"
    raw = cfg["git_url"].replace("github.com", "raw.githubusercontent.com")
    page = re.sub(rf"(!\[[^\]]*){inside}", rf"\1]({raw}/{cfg['branch']}/", page)
    return re.sub(inside, f"]({cfg['git_url']}/blob/{cfg['branch']}/", page)

setup(
    name=cfg["lib_name"],
    **{key: cfg[key] for key in "version description keywords author".split()},
    license=licenses[cfg["license"]],
    license_files=["LICENSE", "prdp_nb/assets/LICENSE-OFL"],
    url=cfg["git_url"],
    long_description=front_page(),
    long_description_content_type="text/markdown",
    classifiers=[f"Development Status :: {statuses[int(cfg['status']) - 1]}", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}",
                 *(f"Programming Language :: Python :: {version}" for version in supported)],
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
    package_data={cfg["lib_name"]: cfg["package_data"].split()},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
