"""A running device is asked though its device file is being edited, or what that names is gone."""

from __future__ import annotations

from pathlib import Path

from tests.field.running import VUPROC, await_made, run_to_end, started, stop, write_file

IMAGE = {"type": "blk", "image": "./disk.raw"}


def test_b8_a_running_device_is_asked_whatever_its_file_is_like(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    file = write_file(tmp_path, device=IMAGE)
    with started([*VUPROC, "run", file]) as process:
        await_made(tmp_path / "disk.sock", process)
        image.unlink()
        for content in (file.read_text(), "socket: ./disk.sock\ndevice: {type: blk, im"):
            file.write_text(content)
            shown = run_to_end([*VUPROC, "status", file])
            assert (shown.returncode, shown.stderr) == (0, "")
            restarted = run_to_end([*VUPROC, "queue", "restart", "0", file])
            assert restarted.returncode == 1
            assert restarted.stderr == "vuproc: queue 0 is not broken\n"
            # It has been asked, and says itself what it cannot do.
            for verb in ("reload", "upgrade"):
                refused = run_to_end([*VUPROC, verb, file])
                assert refused.returncode == 1, refused.stderr
                assert str(file) in refused.stderr
        file.write_text("")
        unknown = run_to_end([*VUPROC, "status", file])
        assert unknown.returncode == 2
        assert "socket can be given instead of the file" in unknown.stderr
        assert run_to_end([*VUPROC, "status", tmp_path / "disk.sock"]).returncode == 0
        assert stop(process)[0] == 0
