"""Videos of generated images: H.264 in an mp4 file, by the ffmpeg that imageio brings."""

import contextlib
import os
import secrets

import numpy as np

from dnnlib.util import UserError

MIN_SIDE = 256      # Smaller frames are enlarged by whole factors, so that a player shows their pixels.


class VideoWriter:
    """Writes frames to an mp4 file, which appears under its name only when it is whole. A context manager.

    Args:
        path: File to write; its directory exists.
        fps: Frames per second.
        quality: 0 (small) to 10 (good).

    Errors: UserError where imageio or its ffmpeg is not installed; OSError where the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 25, quality: float = 8) -> None:
        check_video()
        import imageio
        self.path = os.fspath(path)
        directory, name = os.path.split(os.path.abspath(self.path))
        self._temp = os.path.join(directory, f'.{os.getpid()}-{secrets.token_hex(4)}-{name}')
        # macro_block_size: sizes need not be multiples of 16, but even, which `add` sees to.
        self._writer = imageio.get_writer(self._temp, format='FFMPEG', fps=fps, quality=quality,
                                          macro_block_size=2)

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 [H, W, 1 or 3]; all of one size."""
        factor = max(-(-MIN_SIDE // max(frame.shape[:2])), 1)
        frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
        self._writer.append_data(np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[..., :3])

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                os.replace(self._temp, self.path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._temp)


def check_video() -> None:
    """Errors: UserError where no video can be written."""
    try:
        import imageio  # noqa: F401
        import imageio_ffmpeg
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError('videos need imageio and its ffmpeg: pip install "imageio[ffmpeg]"') from None
