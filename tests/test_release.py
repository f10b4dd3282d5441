"A release: one version everywhere, notes from the changelog, a citation, templates."
import configparser, re, subprocess
from pathlib import Path
import prdp_nb
import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]
CHANGES = (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")
VERSIONS = re.findall(r"^## (\S+)$", CHANGES, re.M)

def citation() -> dict: return yaml.safe_load((ROOT/"CITATION.cff").read_text(encoding="utf-8"))

def test_the_version_is_the_same_everywhere():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    found = dict(changelog=VERSIONS[0], citation=citation()["version"], package=prdp_nb.__version__)
    assert found == dict.fromkeys(found, version)

def test_versions_of_the_changelog_fall():
    numbers = [tuple(map(int, version.split("."))) for version in VERSIONS]
    assert numbers == sorted(set(numbers), reverse=True)

def make_notes(tag: str, folder: Path) -> subprocess.CompletedProcess: # as the workflow does
    workflow = yaml.safe_load((ROOT/".github/workflows/release.yml").read_text(encoding="utf-8"))
    [command] = [step["run"] for step in workflow["jobs"]["build"]["steps"]
                 if "notes.md" in step.get("run", "")]
    (folder/"CHANGELOG.md").write_text(CHANGES, encoding="utf-8")
    return subprocess.run(["bash", "-e", "-c", command], cwd=folder, env={"GITHUB_REF_NAME": tag})

@pytest.mark.parametrize("version", VERSIONS)
def test_notes_of_a_release_are_its_section_of_the_changelog(version, tmp_path):
    assert make_notes(f"v{version}", tmp_path).returncode == 0
    section = CHANGES.partition(f"\n## {version}\n")[2].partition("\n## ")[0]
    notes = (tmp_path/"notes.md").read_text(encoding="utf-8")
    assert notes.strip() == section.strip() and len(notes.split()) > 20

def test_notes_of_a_release_do_not_stop_its_tests(): # `.ci/check_sync` takes no file that git does not know
    assert subprocess.run(["git", "check-ignore", "-q", "notes.md"], cwd=ROOT).returncode == 0

@pytest.mark.parametrize("tag", ["v9.9.9", "v0.2", f"v{VERSIONS[0][1:]}"])
def test_a_version_without_notes_is_not_released(tag, tmp_path):
    assert make_notes(tag, tmp_path).returncode != 0

def test_the_citation_is_the_paper_of_the_front_page():
    cited, page = citation(), (ROOT/"README.md").read_text(encoding="utf-8")
    assert {"cff-version", "message", "title", "authors", "license"} <= {*cited}
    paper = cited["preferred-citation"]
    bibtex = dict(re.findall(r"^  (\w+) += \{(.+)\},?$", page, re.M))
    names = [f"{person['family-names']}, {person['given-names']}" for person in paper["authors"]]
    assert " and ".join(names) == bibtex["author"]
    assert paper["title"] == re.sub("[{}]", "", bibtex["title"])
    assert (paper["collection-title"], str(paper["year"])) == (bibtex["booktitle"], bibtex["year"])

@pytest.mark.parametrize("path", sorted((ROOT/".github/ISSUE_TEMPLATE").glob("*.md")),
                         ids=lambda path: path.stem)
def test_issue_templates_are_offered_and_short(path):
    _, head, body = path.read_text(encoding="utf-8").split("---\n")
    assert {"name", "about"} == {*yaml.safe_load(head)} and len(body.splitlines()) < 10
