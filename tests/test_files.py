"""Files that appear whole or not at all, from several threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from svfit_diffusion.files import write_atomically


def test_threads_leave_the_mask_of_permissions_alone(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        paths = [tmp_path / str(number) for number in range(200)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda p: write_atomically(p, lambda t: t.write_text("x")), paths))
        assert os.umask(0o027) == 0o027
        assert {path.stat().st_mode & 0o777 for path in paths} == {0o640}
    finally:
        os.umask(before)
