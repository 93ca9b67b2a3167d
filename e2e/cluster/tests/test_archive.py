from __future__ import annotations

import json
import tarfile
from pathlib import Path

from e2e.cluster import archive, node_images
from e2e.cluster.paths import Paths


def _image(folder: Path, target: str, entrypoint: str = "/tool") -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / "program"
    program.write_bytes(b"#!binary")
    layer = archive.layer_of({"/bin/tool": program}, folder / "layer.tar")
    file = folder / target
    archive.write_archive(file, "localhost/tool:1", layer, {"Entrypoint": [entrypoint]})
    return file


def test_the_same_files_make_the_same_image(tmp_path: Path) -> None:
    one, two = _image(tmp_path / "a", "one.tar"), _image(tmp_path / "b", "two.tar")
    assert one.read_bytes() == two.read_bytes()
    other = _image(tmp_path / "c", "three.tar", entrypoint="/other")
    assert archive.contents(one) != archive.contents(other)


def test_an_archive_names_what_it_holds(tmp_path: Path) -> None:
    file = _image(tmp_path, "image.tar")
    with tarfile.open(file) as tar:
        listed = tar.extractfile("manifest.json")
        assert listed is not None
        (entry,) = json.load(listed)
        config = tar.extractfile(entry["Config"])
        assert config is not None
        diff_ids = json.load(config)["rootfs"]["diff_ids"]
        assert [f"sha256:{name.removesuffix('.tar')}" for name in entry["Layers"]] == diff_ids
    assert archive.contents(file) == {"localhost/tool:1": f"sha256:{entry['Config'].removesuffix('.json')}"}


def test_an_image_is_current_only_while_the_node_holds_that_very_one(paths: Paths) -> None:
    loaded = node_images.Loaded(paths)
    assert not loaded.current("a:1", "sha256:id", {"a:1": "sha256:manifest"})
    loaded.record({"a:1": "sha256:id"}, {"a:1": "sha256:manifest", "b:1": "sha256:x"})
    assert loaded.current("a:1", "sha256:id", {"a:1": "sha256:manifest"})
    assert not loaded.current("a:1", "sha256:new", {"a:1": "sha256:manifest"})
    assert not loaded.current("a:1", "sha256:id", {"a:1": "sha256:replaced"})
    assert not loaded.current("a:1", "sha256:id", {})
