"""What the tests of archives share: a check that any source of images must pass."""

import multiprocessing
import os
import pickle
import threading

import numpy as np

from dnnlib.util import UserError
from tests.dataset_testutil import Base
from training.datasets.archive_base import Source


def read_all(source: Source) -> np.ndarray:
    return np.stack([source.read(i) for i in range(len(source))])


def _read_in_process(source: Source, queue: multiprocessing.Queue) -> None:
    queue.put([source.read(i) for i in (len(source) - 1, 0)])


class ArchiveBase(Base):

    def write(self, name: str, data: bytes) -> str:
        path = self.path(name)
        with open(path, 'wb') as file:
            file.write(data)
        return path

    def folder(self) -> str:
        return os.path.dirname(self.path('x'))

    def check_source(self, source: Source, expected: np.ndarray) -> None:
        """All images; the same from a pickled copy, from threads and from a forked process."""
        self.assertLen(source, len(expected))
        self.assertEqual(source.shape, list(expected.shape[1:]))
        self.assertAllEqual(read_all(source), expected)
        source.read(0)[:] = 0       # The caller's own copy.
        copy = pickle.loads(pickle.dumps(source))
        self.assertAllEqual(copy.read(len(expected) - 1), expected[-1])
        copy.close()
        results = [None] * 4
        threads = [threading.Thread(target=lambda k=k: results.__setitem__(k, read_all(source)))
                   for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            self.assertAllEqual(result, expected)
        for index in (-1, len(expected)):
            with self.assertRaises(IndexError):
                source.read(index)
        context = multiprocessing.get_context('fork')
        queue = context.Queue()
        process = context.Process(target=_read_in_process, args=(source, queue))
        process.start()
        self.assertAllEqual(np.stack(queue.get(timeout=60)), expected[[-1, 0]])
        process.join()
        source.close()
        self.assertAllEqual(source.read(0), expected[0])

    def check_error(self, function, *args, fragments: tuple[str, ...] = (), **kwargs) -> None:
        with self.assertRaises(UserError) as caught:
            function(*args, **kwargs)
        self.assert_message(caught.exception, *fragments)
