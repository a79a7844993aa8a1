"""How a generator is sampled: its latents, their truncation and, for BigGAN, its statistics.

    sampler = make_sampler(Gs, truncation=0.5)
    images = sampler.draw(seeds=range(8), classes='Sandal')     # uint8, one class or one for each.
    images = sampler.network.run(sampler.latents(rnd, 8), sampler.labels(rnd, 8), **sampler.run_kwargs)
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.util import UserError, did_you_mean
from training import latents as distributions

if TYPE_CHECKING:
    from dnnlib.tflib import Network

STATISTICS = ('standing', 'running', 'batch')   # Of batch normalizations, see `make_sampler`.
PASSES, BATCH = 100, 64                         # Of standing statistics.
# What a sheet of truncations shows, by mode: the thresholds of figure 2 of BigGAN, and their likes.
TRUNCATIONS = {'resample': (2, 1.5, 1, 0.5, 0.04), 'scale': (1, 0.75, 0.5, 0.25, 0.04),
               'std': (1, 0.75, 0.5, 0.25, 0.04)}


@dataclasses.dataclass
class Sampler:
    """A generator as it is to be sampled."""

    network: 'Network'                          # What is to be run: Gs itself or a clone.
    run_kwargs: dict[str, Any]                  # Arguments of its run, such as truncation_psi.
    distribution: str = 'normal'                # Of its latents, see training.latents.
    truncation: float | None = None             # None = off.
    truncation_mode: str | None = None          # One of latents.TRUNCATION_MODES, 'psi' of w, None = none.
    statistics: str | None = None               # One of STATISTICS, or 'table'; None without normalization.
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)     # More for describe().

    @property
    def label_size(self) -> int:
        """Number of label components; 0 = unconditional."""
        return self.network.input_shapes[1][1] if self.network.num_inputs > 1 else 0

    def latents(self, rnd: np.random.RandomState, n: int) -> np.ndarray:
        """n latents of a RandomState, truncated where z is what truncation is about: [n, latent_size]."""
        bounds = {}
        if self.truncation_mode in distributions.TRUNCATION_MODES:
            bounds = dict(truncation=self.truncation, mode=self.truncation_mode)
        return distributions.sample(self.distribution, rnd, [n, *self.network.input_shape[1:]], **bounds)

    def seed_latents(self, seeds: Sequence[int]) -> np.ndarray:
        """The latents of seeds, each a function of its seed alone: [len(seeds), latent_size]."""
        return np.concatenate([self.latents(np.random.RandomState(seed), 1) for seed in seeds])

    def labels(self, rnd: np.random.RandomState, n: int) -> np.ndarray:
        """n one-hot labels, all classes equally likely: float32 [n, label_size]."""
        labels = np.zeros([n, self.label_size], np.float32)
        if self.label_size:
            labels[np.arange(n), rnd.randint(self.label_size, size=n)] = 1
        return labels

    def draw(self, seeds: Sequence[int], classes: int | str | Sequence[int | str] | None = None,
             batch_size: int = 8) -> np.ndarray:
        """Images uint8 [len(seeds), C, H, W] of seeds; noise, where a network has it, is drawn anew.

        Args:
            seeds: One image each.
            classes: Number or name, see classes.class_names; or one for each seed. None = random ones of
                conditional networks, see `random_pictures`.
            batch_size: Images at a time.

        Errors: UserError for a class that there is not, and for another number of them.
        """
        from generation import classes as naming
        seeds = list(seeds)
        if classes is None:
            return np.stack(list(random_pictures(self, seeds, None, batch_size)))
        tokens = [classes] * len(seeds) if isinstance(classes, int | str | np.integer) else list(classes)
        if len(tokens) != len(seeds):
            raise UserError(f'expected one class or as many as seeds, received {len(tokens)} of '
                            f'{len(seeds)} seeds')
        names = naming.class_names(self.network)
        numbers = [naming.resolve([token if isinstance(token, str) else int(token)], self.network, names)[0]
                   for token in tokens]
        labels = naming.class_labels(self.network, numbers)
        return np.stack(list(pictures(self, self.seed_latents(seeds), labels, batch_size)))

    def describe(self) -> dict[str, Any]:
        """How the network is sampled, for records: numbers, texts and None."""
        return {'latent_distribution': self.distribution, 'truncation': self.truncation,
                'truncation_mode': self.truncation_mode if self.truncation is not None else None,
                'statistics': self.statistics, **self.facts}


def make_sampler(
    Gs: 'Network',                              # The generator, not changed.
    truncation: float | None = None,            # ψ of style-based generators, t of BigGAN. None = off.
    truncation_mode: str | None = None,         # Of BigGAN's latents. None = see default_mode.
    statistics: str | None = None,              # Of batch normalizations. None = standing.
    seed: int = 0,                              # Of standing statistics.
    passes: int = PASSES,                       # Batches of standing statistics.
    batch: int = BATCH,                         # Their size.
    use_cache: bool = True,                     # Keep standing statistics in the cache directory?
    verbose: bool = False,                      # Say when standing statistics are computed?
) -> Sampler:
    """How to sample a generator.

    Style-based generators and ProGAN's are run as they are. BigGAN has latents of its own distribution, which
    truncation bounds, and batch normalizations with these statistics:

    - 'standing': moments over batches of latents of the very distribution that is sampled (BigGAN, appendix
      C.1), in a clone;
    - 'running': those that training left behind;
    - 'batch': those of each batch, so that an image depends on the others of its batch.

    Imported networks with a table of statistics for truncations use that ('table').

    Errors: UserError for a truncation, mode or statistics that the network does not have.
    """
    from generation import sampling
    from generation import standing_statistics as standing
    sampling.check_generator(Gs)
    if statistics not in (None, *STATISTICS):
        raise UserError(f'there are no statistics {statistics!r}; expected one of {", ".join(STATISTICS)}'
                        f'{did_you_mean(str(statistics), STATISTICS, 1)}')
    if truncation is not None and not math.isfinite(truncation):
        raise UserError(f'truncation: expected a finite number, received {truncation}')
    if not standing.has_norms(Gs):
        return _plain_sampler(Gs, truncation, truncation_mode, statistics)
    distribution, mode = latent_distribution(Gs), truncation_mode or default_mode(Gs)
    check_options(Gs, dict(truncation=truncation, truncation_mode=mode, statistics=statistics))
    if statistics is None:
        # A table is for truncations of that mode.
        fits = standing.has_table(Gs) and (truncation is None or mode == 'scale')
        statistics = 'table' if fits else 'standing'
    sampler = Sampler(Gs, {}, distribution, truncation, mode, statistics)
    if statistics == 'standing':
        sampler.network = standing.with_standing_statistics(
            Gs, sampler.latents, truncation=truncation, mode=mode, distribution=distribution, seed=seed,
            passes=passes, batch=batch, use_cache=use_cache, verbose=verbose)
        sampler.facts = dict(statistics_seed=seed, statistics_passes=passes, statistics_batch=batch)
    elif statistics == 'batch':
        sampler.run_kwargs['statistics'] = 'batch'
    elif standing.has_table(Gs):
        sampler.run_kwargs['truncation'] = 1.0 if truncation is None else float(truncation)
    return sampler


def check_options(Gs: 'Network', options: dict[str, Any]) -> dict[str, Any]:
    """Checks arguments of make_sampler for a BigGAN before anything is computed; returns them.

    Errors: UserError for those that do not fit the network or each other.
    """
    from generation import standing_statistics as standing
    truncation, statistics = options.get('truncation'), options.get('statistics')
    mode = options.get('truncation_mode') or default_mode(Gs)
    distributions.check_truncation(latent_distribution(Gs), truncation, mode)
    if standing.has_table(Gs) and (mode == 'scale' and statistics is None or statistics == 'running'):
        if mode != 'scale' and truncation is not None:
            raise UserError(f'network {Gs.name} has statistics for the truncation mode scale, received '
                            f'{mode}; choose standing statistics')
        if (truncation or 0) > 1:
            raise UserError(f'network {Gs.name} has statistics for truncations from 0 to 1, received '
                            f'{truncation:g}; choose standing statistics')
    if statistics == 'running' or standing.has_table(Gs) and statistics is None:
        standing.check_running(Gs)
    return options


def latent_distribution(Gs: 'Network') -> str:
    """The distribution of a generator's latents, see training.latents."""
    return getattr(Gs.layer, 'latent_distribution', None) or 'normal'


def default_mode(Gs: 'Network') -> str:
    """The truncation mode that suits a BigGAN: 'scale' for networks imported from TensorFlow Hub."""
    from generation import standing_statistics as standing
    return Gs.static_kwargs.get('truncation_mode') or ('scale' if standing.has_table(Gs) else 'resample')


def is_biggan(Gs: 'Network') -> bool:
    """Whether a generator has truncation of z and statistics: BigGAN's."""
    from generation import standing_statistics as standing
    return standing.has_norms(Gs)


def _plain_sampler(Gs: 'Network', truncation: float | None, truncation_mode: str | None,
                   statistics: str | None) -> Sampler:
    """Of a generator without batch normalization."""
    from generation import sampling
    kind = type(Gs.layer).__name__
    if statistics is not None:
        raise UserError(f'network {Gs.name} ({kind}) has no batch normalization; leave '
                        f'statistics={statistics} out')
    if truncation_mode is not None:
        raise UserError(f'network {Gs.name} ({kind}) has no truncation of z; leave '
                        f'truncation_mode={truncation_mode} out')
    run_kwargs: dict[str, Any] = {'randomize_noise': True} if sampling.noise_vars(Gs) else {}
    has_psi = 'dlatent_avg' in Gs.vars
    if has_psi:
        run_kwargs['truncation_psi'] = 1.0 if truncation is None else float(truncation)
    elif truncation is not None:
        raise UserError(f'network {Gs.name} ({kind}) has no truncation; leave truncation={truncation:g} out')
    return Sampler(Gs, run_kwargs, truncation=truncation, truncation_mode='psi' if has_psi else None)


def pictures(sampler: Sampler, latents: Iterable[np.ndarray], labels: Iterable[np.ndarray],
             batch_size: int = 8) -> Iterator[np.ndarray]:
    """Yields images uint8 [C, H, W] of latents [latent_size] and labels [label_size], in their order."""
    import tensorflow as tf

    from dnnlib import tflib
    network = sampler.network
    dtype, stage = network.layer.compute_dtype, network.layer.stage()

    def evaluate(*inputs):
        from training.context import Context
        images = network.get_output_for(*inputs, ctx=Context(stage=stage), **sampler.run_kwargs)
        return tflib.convert_images_to_uint8(images)
    functions: dict[int, Any] = {}
    items = zip(latents, labels, strict=False)      # Either may go on for ever.
    while batch := list(itertools.islice(items, batch_size)):
        # One shape, one trace; but where images of a batch depend on each other none is there twice.
        missing = batch_size - len(batch) if functions and sampler.statistics != 'batch' else 0
        columns = zip(*batch, *[batch[-1]] * missing, strict=True)
        inputs = [tf.constant(np.stack(column), dtype) for column in columns][:network.num_inputs]
        size = len(batch) + missing
        if size not in functions:   # A concrete one: TensorFlow would warn of many samplers as of retracing.
            functions[size] = tf.function(evaluate, autograph=False).get_concrete_function(*inputs)
        yield from functions[size](*inputs).numpy()[:len(batch)]


def class_pictures(network: 'Network', sampler: Sampler | None, classes: Sequence[int | None],
                   seeds: Sequence[int], truncation_psi: float, batch_size: int,
                   ) -> Iterator[tuple[int | None, int, np.ndarray]]:
    """Yields (class, seed, image uint8 [C, H, W]): all seeds of the first class, then those of the next.

    Args:
        sampler: Of BigGAN; None for other networks, which have truncation_psi.
        classes: [None] for unconditional networks.
    """
    from generation import sampling
    labels = [sampling.class_label(network, number) for number in classes]
    if sampler is None:
        for number, label in zip(classes, labels, strict=True):
            for seed, image in sampling.generate(network, seeds, truncation_psi, label, batch_size):
                yield number, seed, image
        return
    pairs = [(number, seed) for number in classes for seed in seeds]
    latents = (sampler.seed_latents([seed])[0] for _, seed in pairs)
    images = pictures(sampler, latents, (label[0] for label in labels for _ in seeds), batch_size)
    for (number, seed), image in zip(pairs, images, strict=True):
        yield number, seed, image


def random_pictures(sampler: Sampler, seeds: Sequence[int], class_idx: int | None,
                    batch_size: int) -> Iterator[np.ndarray]:
    """Yields images uint8 [C, H, W] of seeds; without a class, each seed draws one, after its latents."""
    from generation import sampling
    inputs = []
    for seed in seeds:
        rnd = np.random.RandomState(seed)
        latents, label = sampler.latents(rnd, 1), sampler.labels(rnd, 1)
        if class_idx is not None:
            label = sampling.class_label(sampler.network, class_idx)
        inputs.append((latents[0], label[0]))
    return pictures(sampler, *zip(*inputs, strict=True), batch_size=batch_size)
