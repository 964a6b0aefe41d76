import hashlib

from proxy.adapters.redis.scripts import Script, packaged_script


def test_a_script_is_known_by_the_digest_of_its_text():
    script = Script("one", "return 'ü'")
    assert script.digest == hashlib.sha1("return 'ü'".encode()).hexdigest()
    assert "return" not in repr(script)


def test_scripts_are_read_from_package_data(tmp_path, monkeypatch):
    (tmp_path / "pack_of_scripts" / "lua").mkdir(parents=True)
    (tmp_path / "pack_of_scripts" / "__init__.py").touch()
    (tmp_path / "pack_of_scripts" / "lua" / "two.lua").write_text("return 2\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged_script("two", "pack_of_scripts") == Script("two", "return 2\n")
