"""Every example in a docstring and in the README is run, and must print what it says."""

import doctest
import importlib
import pkgutil
import re
import shutil
import types
from pathlib import Path

import pytest

import fastbn

ROOT = Path(__file__).parent.parent
MODULES = ["fastbn"] + [
    module.name
    for module in pkgutil.walk_packages(fastbn.__path__, "fastbn.")
    if module.name != "fastbn.__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_are_found_where_they_are_promised():
    """A doctest finder that finds nothing would pass."""
    for item in (fastbn.batch_norm, fastbn.batch_norm_backward, fastbn.BatchNorm2d):
        assert ">>>" in item.__doc__


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="not in a checkout")
def test_readme_examples(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # they write files, and read those of the tests
    for file in (ROOT / "tests" / "data").iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    shutil.copy(ROOT / "tests" / "data" / "onnx" / "torch_dynamo.onnx", "network.onnx")
    shutil.unpack_archive("keras.zip", "keras")
    shutil.copy("keras/model.keras", "network.keras")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 1
    examples = doctest.DocTestParser().get_doctest(
        "\n".join(blocks), {}, "README.md", "README.md", 0
    )
    assert len(examples.examples) >= 5
    assert doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="not in a checkout")
def test_the_contents_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) > 20
    assert set(links) <= anchors


def test_the_map_of_the_package_names_files_that_are_there():
    package = Path(fastbn.__file__).parent
    text = (package / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    there = {path.name for path in package.rglob("*.py")}
    assert len(named) > 50
    others = {"cases.py", "internals.py", "internals_cache.py"}  # of the tests
    others |= {"internals_device.py", "internals_formulas.py", "reference.py"}
    assert {name.rpartition("/")[2] for name in named} <= there | others


def test_every_public_name_is_documented():
    for name in fastbn.__all__:
        item = getattr(fastbn, name)
        if isinstance(item, types.UnionType):  # which has Python's
            continue
        assert item.__doc__, name
        assert len(item.__doc__) > 60, name
