"""What a metric needs to know about what it measures: images, features, random numbers, progress.

    ev = Evaluation(Gs=Gs, reals=DatasetSource(training_set), seed=0)
    real_mean, real_cov = ev.features(ev.reals(50000), 'inception').moments(ddof=1)
    fakes = ev.features(ev.fakes(50000), 'inception').all()

Nothing is held that grows with the number of images but features that somebody asked for as a whole. Several
replicas share the minibatches; the random numbers of an image are a function of the seed and its index, so
that neither their number nor the size of the minibatches changes what is measured.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from training.context import Context

from .feature_nets import find_extractor
from .feature_streams import FeatureStore, FeatureStream
from .image_streams import DEFAULT_BATCH, ImageNoise, ImageStream, philox, to_rgb
from .progress import Progress
from .replica_map import ReplicaMap

__all__ = ['Evaluation', 'FeatureStream', 'ImageNoise', 'ImageStream', 'for_training', 'philox']

BLOCK = 256             # Images whose latents come from one generator of random numbers.

# How an extractor resizes what it gets.
RESIZE = {'inception': 'TF1 bilinear to 299x299', 'vgg16': 'TF1 bilinear to 224x224', 'lpips': 'none',
          'efflite0': 'antialiased bilinear to 128x128', 'random': 'none'}


class Evaluation:
    """What is measured, and how.

    Args:
        Gs: Generator, a tflib.Network; None to compare folders of images.
        reals, fakes: Sources of metrics.image_sources; `fakes` takes the place of Gs.
        seed: Of the latents, labels and noise of generated images, and of `rng`.
        batch: Images per replica at a time.
        num_images: Overrides counts of metrics.
        generation: 'stylegan2', 'ada' or 'ada-pytorch': whose definitions hold where they differ.
        mirror: Were images mirrored in training?
        strategy: tf.distribute strategy; None = the current one.
        weights_dir: Folder with weights of feature networks.
        cache_dir: Folder of statistics of reals; None = not kept.
        truncation, truncation_mode, statistics: How the generator is sampled, see generation.samplers.
        class_idx: Measure this class alone.
        class_names: Names of the generator's classes, where the reals do not have them.
        labels: Label table [N, label_size] to draw labels from, if not that of the reals.
        keep_statistics: Keep standing statistics of BigGAN on the disk?
        should_stop: Asked every few seconds; when it returns True, metric_base.Stopped is raised.
    """

    def __init__(
        self,
        Gs: Any = None,
        reals: Any = None,
        fakes: Any = None,
        *,
        seed: int = 0,
        batch: int | None = None,
        num_images: int | None = None,
        generation: str = 'stylegan2',
        mirror: bool = False,
        strategy: tf.distribute.Strategy | None = None,
        weights_dir: str | None = None,
        cache_dir: str | None = None,
        truncation: float | None = None,
        truncation_mode: str | None = None,
        statistics: str | None = None,
        class_idx: int | None = None,
        labels: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        keep_statistics: bool = True,
        should_stop: Callable[[], bool] | None = None,
    ):
        self.Gs, self._reals, self._fakes = Gs, reals, fakes
        self.seed, self.batch, self.num_images = int(seed), batch or DEFAULT_BATCH, num_images
        self.generation, self.mirror, self.class_idx = generation, mirror, class_idx
        if strategy is None or isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            strategy = tf.distribute.get_strategy()     # Every worker computes everything for itself.
        self.strategy = strategy
        self.num_replicas = self.strategy.num_replicas_in_sync
        self.weights_dir = weights_dir
        self.sampling = dict(truncation=truncation, truncation_mode=truncation_mode, statistics=statistics,
                             use_cache=keep_statistics)
        self.result_dir: str | None = None      # Where metrics may write pictures.
        self.file_prefix = ''                   # Of such files.
        self._labels, self._class_names = labels, class_names
        self._extractors: dict[str, Any] = {}
        self._replicas = ReplicaMap(self.strategy, should_stop)
        self._samplers: dict[tuple, Any] = {}
        self._store = FeatureStore(self, cache_dir)
        self._used: dict[str, Any] = {}         # Facts of the streams of the metric that is computed.
        self._metric: Any = None

    # What is measured.

    @property
    def sources(self) -> dict[str, Any]:
        """Sources of images by kind, 'reals' and 'fakes'; those that the network draws have none."""
        found = {'reals': self._reals, 'fakes': self._fakes}
        return {kind: source for kind, source in found.items() if source is not None}

    @property
    def has_reals(self) -> bool:
        """Are there real images?"""
        return self._reals is not None

    def describe_reals(self) -> str:
        """What it is compared with, for messages; '' without reals."""
        if self._reals is None:
            return ''
        facts = [self._reals.name, f'{self._reals.num} images']
        if self.class_idx is not None and self._reals.label_size:
            facts.append(f'of these class {self.class_idx}')
        if self.mirror:
            facts.append('half of them flipped')
        if self._reals.resize != 'none':
            facts.append(self._reals.resize)
        return f' (reals: {", ".join(facts)})'

    @property
    def shape(self) -> list[int]:
        """[channels, height, width] of the images that are measured; those of folders may differ."""
        if self._fakes is None and self.Gs is not None:
            return [int(size) for size in self.Gs.output_shape[1:]]
        return list((self._fakes or self._reals).shape)

    @property
    def resolution(self) -> int:
        """Height of the images."""
        return self.shape[1]

    @property
    def label_size(self) -> int:
        """Number of label components of the generator; 0 = unconditional, or no generator."""
        return self.Gs.input_shapes[1][1] if self.Gs is not None and self.Gs.num_inputs > 1 else 0

    @property
    def num_classes(self) -> int:
        """Number of classes: label components of the generator, or of the reals without one."""
        return self.label_size if self.Gs is not None or self._reals is None else self._reals.label_size

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, as the reals or the generator have them; None where neither does."""
        names = getattr(self._reals, 'class_names', None) or self._class_names
        return list(names) if names and len(names) == self.num_classes else None

    @property
    def label_table(self) -> np.ndarray:
        """Labels that are drawn for generated images, each row as likely as any other: [rows, label_size].

        It has a row for each image of the data set; `random_labels` and `distinct_labels` do without it.
        """
        num, rows = self._label_rows()
        return rows(np.arange(num))

    @property
    def distinct_labels(self) -> np.ndarray:
        """Labels that generated images may have, each once: [rows, label_size]; one-hot ones by class."""
        num, rows = self._label_rows()
        classes = self._reals.classes if rows == getattr(self._reals, 'label_rows', None) else None
        if classes is not None:
            return rows(np.unique(classes, return_index=True)[1])
        return np.unique(rows(np.arange(num)), axis=0)[::-1]

    def _label_rows(self) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
        """(number of rows of the table of labels, indices [n] → labels float32 [n, label_size])."""
        size = self.label_size
        if self.class_idx is not None and size:
            return 1, lambda indices: np.eye(size, dtype=np.float32)[np.full(len(indices), self.class_idx)]
        if not size:
            return 1, lambda indices: np.zeros([len(indices), 0], np.float32)
        if self._labels is not None:
            found, num, rows = self._labels.shape[1], len(self._labels), lambda indices: self._labels[indices]
        elif self._reals is not None and self._reals.label_size:
            found, num, rows = self._reals.label_size, self._reals.num, self._reals.label_rows
        else:
            found, num, rows = size, size, lambda indices: np.eye(size, dtype=np.float32)[indices]
        if found != size:
            raise UserError(f'network {self.Gs.name} has {size} classes, the data set {found}; choose the '
                            'data set and labels that it was trained with')
        return num, rows

    def count(self, num: int) -> int:
        """The number of images for a metric that wants `num`."""
        return self.num_images or num

    def num_available(self, with_reals: bool = True) -> dict[str, float]:
        """How many real and generated images there are."""
        found = {'generated': self._fakes.num or np.inf if self._fakes is not None else np.inf}
        if with_reals and self._reals is not None:
            found['real'] = self._reals.num
        return found

    # Random numbers.

    def rng(self, name: str) -> np.random.RandomState:
        """A generator of random numbers, a function of the seed and a name."""
        return np.random.RandomState(philox('rng', self.seed, name))

    def random_labels(self, rng: np.random.RandomState, n: int) -> np.ndarray:
        """Labels as the data set has them: float32 [n, label_size]."""
        num, rows = self._label_rows()
        return rows(rng.randint(num, size=n))

    # Images.

    def reals(self, num: int | None = None, mirror: bool | None = None, full: bool = False,
              classes: Sequence[int] | None = None, wrap: bool | None = None) -> ImageStream:
        """Real images.

        Args:
            num: How many. None = all.
            mirror: Flip half of them? None = as in training.
            full: All images of the data set once, at most `num`, unflipped; num_images has no effect.
            classes: Only images of these classes.
            wrap: Begin again where the data set has fewer? None = as the generation of definitions does it,
                never for folders.

        Errors: UserError where there are none.
        """
        if self._reals is None:
            raise UserError(f'{self._who()} compares with real images; give --data-dir and --dataset, or a '
                            'folder by --reals')
        if classes is None and self.class_idx is not None and self._reals.label_size:
            classes = [self.class_idx]
        if num is not None and not full:
            num = self.count(num)
        if full:
            mirror = wrap = False
        if wrap is None:
            wrap = self.generation == 'stylegan2' and self._reals.wraps
        stream = self._reals.stream(num, self.mirror if mirror is None else mirror, wrap, classes)
        self._used['reals'] = stream.facts
        return stream

    def fakes(
        self,
        num: int,
        labels: np.ndarray | int | None = None,     # [num, label_size], or a class. None = drawn.
        *,
        name: str = '',                             # Other names have other latents.
        num_latents: int = 1,                       # Latents per image, for `synthesize`.
        synthesize: Callable | None = None,         # (network, latents, labels, ctx) → images [n, C, H, W].
        truncation: Any = 'default',                # Instead of that of the evaluation.
        **run_kwargs: Any,                          # Arguments of the network.
    ) -> ImageStream:
        """Generated images.

        With `synthesize`, latents are [n, num_latents, latent_size], and a name must tell what it does.

        Errors: UserError where there is no generator and something of it is asked for.
        """
        num = self.count(num)
        if self._fakes is not None and not (synthesize or run_kwargs or truncation != 'default'):
            classes = [int(labels)] if np.ndim(labels) == 0 and labels is not None else None
            stream = self._fakes.stream(num, False, False, classes)
            if stream.num < num and 'fakes' not in self._used:
                print(f'Warning: {self._who()}: {stream.num} generated images instead of {num}: compare it '
                      'only with others of the same count', file=sys.stderr)
            self._used['fakes'] = stream.facts
            return stream
        self.require_network()
        sampler = self.sampler if truncation == 'default' else self.make_sampler(truncation=truncation)
        if np.ndim(labels) == 0 and labels is not None:
            labels = np.repeat(np.eye(self.label_size, dtype=np.float32)[[labels]], num, axis=0)
        network, stage = sampler.network, sampler.network.layer.stage()
        kwargs = {**sampler.run_kwargs, **run_kwargs}
        drawn_by = stage, name if synthesize else '', repr(sorted(kwargs.items()))
        function_key = (id(network), *drawn_by)
        label_key = None if labels is None else hashlib.sha256(np.ascontiguousarray(labels)).hexdigest()
        # Not the number of the network: a clone may come back, or another one take its place.
        key = ('fakes', num, self.seed, name, num_latents, label_key, self.class_idx, drawn_by,
               repr(sorted(sampler.describe().items())))

        def images(latents, label_rows, seeds):
            ctx = ImageNoise(seeds, stage)
            if synthesize is not None:
                return to_rgb(synthesize(network, latents, label_rows, ctx))
            return to_rgb(self.run_generator(latents[:, 0], label_rows, ctx, network, **kwargs))
        facts = {'count': num, 'resize': 'none', **sampler.describe()}
        self._used['fakes'] = facts
        return ImageStream(num, key, inputs=lambda size: self._fake_inputs(
            sampler, num, size, name, num_latents, labels), images=images, function_key=function_key,
            facts=facts, ev=self, kind='generated images')

    def _fake_inputs(self, sampler: Any, num: int, size: int, name: str, num_latents: int,
                     labels: np.ndarray | None) -> Iterator[tuple[np.ndarray, ...]]:
        num_rows, label_rows = self._label_rows()
        dtype = sampler.network.layer.compute_dtype

        def block(number):
            rnd = np.random.RandomState(philox('fakes', self.seed, name, number))
            rows = label_rows(rnd.randint(num_rows, size=BLOCK))
            seeds = rnd.randint(-2 ** 31, 2 ** 31, [BLOCK, 2], np.int64).astype(np.int32)
            latents = sampler.latents(rnd, BLOCK * num_latents).astype(dtype)
            return latents.reshape(BLOCK, num_latents, -1), rows, seeds

        waiting = [block(0)]
        blocks = 1
        for begin in range(0, num, size):
            end = min(begin + size, num)
            while blocks * BLOCK < end:
                waiting.append(block(blocks))
                blocks += 1
            first = blocks - len(waiting)
            arrays = [np.concatenate(parts) for parts in zip(*waiting, strict=True)]
            latents, rows, seeds = (array[begin - first * BLOCK:end - first * BLOCK] for array in arrays)
            waiting = waiting[max(end // BLOCK - first, 0):]
            yield latents, rows if labels is None else np.asarray(labels[begin:end], np.float32), seeds

    def require_network(self) -> Any:
        """The generator. Errors: UserError where there is none."""
        if self.Gs is None:
            raise UserError(f'{self._who()} needs a generator; give --network instead of --fakes')
        return self.Gs

    def _who(self) -> str:
        return f'metric {self._metric.name}' if self._metric is not None else 'this metric'

    @property
    def sampler(self) -> Any:
        """generation.samplers.Sampler of the generator; None without one."""
        return None if self.Gs is None else self.make_sampler()

    def make_sampler(self, **changes: Any) -> Any:
        """The sampler with another truncation, truncation_mode or statistics."""
        from generation.samplers import make_sampler
        options = {**self.sampling, **changes}
        key = tuple(sorted(options.items(), key=lambda item: item[0]))
        if key not in self._samplers:
            sampler = make_sampler(self.require_network(), seed=self.seed, **options)
            if changes:     # Many of a sweep: the last one stays, beside the one that all metrics use.
                self._drop_samplers(tuple(sorted(self.sampling.items(), key=lambda item: item[0])))
            self._samplers[key] = sampler
        return self._samplers[key]

    def _drop_samplers(self, kept: tuple | None = None) -> None:
        """Forgets samplers but one, and the functions that hold their networks (of BigGAN: clones)."""
        for key in [key for key in self._samplers if key != kept]:
            network = self._samplers.pop(key).network
            if network is not self.Gs and network not in [other.network for other in self._samplers.values()]:
                functions = self._replicas.functions
                for name in [name for name in functions if id(network) in _flat(name)]:
                    del functions[name]

    def check_sampling(self) -> None:
        """Looks whether the generator can be sampled as was asked for. Errors: UserError."""
        from generation.samplers import check_options, is_biggan
        if is_biggan(self.require_network()):   # Whose standing statistics would take their time.
            options = {key: value for key, value in self.sampling.items() if key != 'use_cache'}
            check_options(self.Gs, options)
        else:
            self.make_sampler()

    def run_generator(self, latents: Any, labels: Any = None, ctx: Context | None = None, network: Any = None,
                      **kwargs: Any) -> tf.Tensor:
        """Images [n, C, H, W] in [-1, 1] of latents [n, latent_size], within a graph or eagerly.

        Args:
            ctx: Where noise comes from. None = TensorFlow's own generator.
            network: Instead of the one of the sampler, whose arguments kwargs then have to name.
        """
        if network is None:
            network, kwargs = self.sampler.network, {**self.sampler.run_kwargs, **kwargs}
        inputs = [latents] if network.num_inputs == 1 else [latents, labels]
        ctx = ctx or Context(stage=network.layer.stage())
        return network.get_output_for(*inputs, ctx=ctx, **kwargs)

    # Features.

    def extractor(self, name: str) -> Any:
        """A feature network. Errors: UserError where its weights are missing."""
        if name not in self._extractors:
            with self.strategy.scope():
                self._extractors[name] = find_extractor(name, self.weights_dir)
        return self._extractors[name]

    def features(self, stream: ImageStream, extractor: str, output: str = 'features',
                 keep: bool = True) -> FeatureStream:
        """Features of images, computed when they are asked for.

        Args:
            stream: Of `reals`, `fakes` or a home-made one.
            extractor: Key of feature_nets.EXTRACTORS.
            output: 'features' or 'logits'.
            keep: Share them with other metrics of the group? They are held as long as it lasts.
        """
        return self._store.stream(stream, extractor, output, keep)

    def map(self, function: Callable, batches: Iterable[tuple[np.ndarray, ...]], total: int, label: str,
            key: Any = None, unit: str = 'img') -> Iterator[Any]:
        """Results of a function for minibatches, shared among the replicas, in order.

        Args:
            function: (*tensors) → tensor, or list of tensors, with as many rows; runs within a graph.
            batches: Tuples of arrays with equal numbers of rows, at most `batch`.
            total: Rows altogether, for the progress bar.
            label: What is done, for the progress bar.
            key: What the function depends on, so that it is traced once. None = it is traced anew.
            unit: What rows are, for the progress bar.

        Yields: What the function returned, as arrays.
        """
        with self.progress(label, total, unit) as progress:
            yield from self._replicas.map(function, batches, min(self.batch, total), progress.update, key)

    # Runs.

    def share(self, other: 'Evaluation | None') -> None:
        """Takes over feature networks and features of reals of another evaluation, of the same strategy."""
        if other is not None:
            self._extractors = other._extractors
            if other.class_idx == self.class_idx:   # Those of a thousand classes would fill the memory.
                self._store.reals = other._store.reals
            if other.Gs is self.Gs and other.batch == self.batch:
                self._replicas.functions = other._replicas.functions

    def progress(self, label: str, total: int, unit: str = 'img') -> Progress:
        """A progress bar on a terminal, lines in a log; a context manager with `update(count)`."""
        who = f'{self._metric.name}: ' if self._metric is not None else ''
        return Progress(who + label, total, unit)

    @contextlib.contextmanager
    def group(self, metrics: Sequence[Any], result_dir: str | None = None) -> Iterator[None]:
        """Within it, metrics share features of generated images."""
        self.result_dir = result_dir
        self._drop_samplers()
        names = [metric.extractor for metric in metrics if metric.extractor]
        self._store.shared = {name for name in names if names.count(name) > 1}
        try:
            yield
        finally:
            self._store.clear()
            self._drop_samplers()   # The next snapshot has other statistics.

    @contextlib.contextmanager
    def measuring(self, metric: Any) -> Iterator[None]:
        """Within it, progress and messages name a metric, and its facts are collected."""
        self._metric, self._used = metric, {}
        try:
            yield
        finally:
            self._metric = None

    def facts(self, metric: Any) -> dict[str, Any]:
        """What a result needs to be repeated, for the .jsonl file."""
        extractor = self._extractors.get(metric.extractor)
        used = self._used
        resize = {kind: facts['resize'] for kind, facts in used.items()}
        if extractor is not None:
            resize['extractor'] = RESIZE.get(extractor.name, 'unknown')
        return {
            'extractor': metric.extractor,
            'extractor_file': extractor.file if extractor is not None else None,
            'extractor_sha256': extractor.sha256 if extractor is not None else None,
            'num_reals': used.get('reals', {}).get('count'),
            'num_fakes': used.get('fakes', {}).get('count'),
            'reals': used.get('reals'), 'fakes': used.get('fakes'),
            'resize_filter': resize, 'seed': self.seed, 'generation': self.generation,
            'mirror': self.mirror, 'class': self.class_idx, 'num_gpus': self.num_replicas,
            'batch': self.batch}


def for_training(
    previous: Evaluation | None,            # Of the snapshot before, whose traced functions serve again.
    network_pkl: str = '',                  # The snapshot.
    *,
    Gs: Any = None,                         # Its generator. None = loaded from the snapshot.
    training_set: Any = None,               # training.dataset.Dataset. None = opened by the next two.
    data_dir: str | None = None,
    dataset_args: dict[str, Any] | None = None,
    mirror_augment: bool = False,           # Are reals flipped in training?
    strategy: tf.distribute.Strategy | None = None,
    num_gpus: int = 1,                      # Instead of a strategy.
    minibatch_gpu: int | None = None,       # Images that a replica can train with at a time.
    **options: Any,                         # Of Evaluation.
) -> Evaluation:
    """What a snapshot is measured by during training, and by the official calls of MetricGroup.run."""
    if Gs is None:
        import pretrained_networks
        Gs = pretrained_networks.load_network(network_pkl)
    # Without gradients there is room for more images than in training.
    batch = None if minibatch_gpu is None else min(max(2 * minibatch_gpu, 8), DEFAULT_BATCH)
    if previous is not None and previous.Gs is Gs:
        previous.batch = batch or DEFAULT_BATCH     # Growing networks take fewer images as they grow.
        return previous
    if training_set is None:
        from training.dataset import load_dataset
        training_set = load_dataset(data_dir, **(dataset_args or {}))
    if strategy is None and num_gpus > 1:
        from training.strategies import local_strategy
        strategy = local_strategy(num_gpus)
    from .feature_cache import default_directory
    from .image_sources import DatasetSource, reduced
    return Evaluation(Gs, DatasetSource(training_set, reduced(training_set)), **{
        'mirror': mirror_augment, 'strategy': strategy, 'batch': batch, 'cache_dir': default_directory(),
        'keep_statistics': False, **options})


def _flat(key: Any) -> list[Any]:
    """The parts of a key, and of the keys in it."""
    return tf.nest.flatten(key) if isinstance(key, tuple) else [key]
