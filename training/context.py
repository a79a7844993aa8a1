"""What a forward pass takes from and leaves in the world: random numbers, state updates and reported values.

Networks and losses never draw from a global generator and never assign to a variable themselves; they ask the
context they are given. That makes one and the same code serve plain inference (`Context`), the training loop
(`StepContext`: random numbers are a function of seed and position, so that a resumed run repeats them exactly
and the number of replicas does not matter) and tests that feed recorded random numbers.
"""

from collections.abc import Sequence

import tensorflow as tf

from dnnlib.tflib.autosummary import reduce_moments


class OneHotLabels:
    """A table of labels that are classes: it holds their numbers alone, and expands the rows that are drawn.

    Args:
        classes: int [rows]; a class from label_size up gives zeros.
        label_size: Number of components of a label.
    """

    def __init__(self, classes: Sequence[int], label_size: int):
        self._classes = tf.constant(classes, tf.int32)
        self.shape = (self._classes.shape[0], int(label_size))

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows int [n] → labels float32 [n, label_size]."""
        return tf.one_hot(tf.gather(self._classes, rows), self.shape[1])


class Context:
    """Immediate mode: global random numbers, updates done at once, reports dropped, features on request.

    Attributes:
        stage: training.growing.Stage that growing networks run in; None = what their lod says.
        stage_size: Images of growing networks have the size of the stage, not that of the final resolution?
        features: {name: output of the layer}, where they are kept.
        progress: Share of the training that is done, 0 to 1, a number or a tensor.
    """

    stage = None
    stage_size = False
    progress: float | tf.Tensor = 1.0

    def __init__(self, label_table: tf.Tensor | OneHotLabels | None = None, keep_features: bool = False,
                 loss_state: dict | None = None, stage=None):
        self._label_table = label_table
        self._loss_state = loss_state or {}
        self.stage = stage
        self.features: dict[str, tf.Tensor] | None = {} if keep_features else None

    def normal(self, shape: Sequence[int] | tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
        """Standard normal numbers."""
        return tf.random.normal(shape, dtype=dtype)

    def uniform(self, shape: Sequence[int] | tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
        """Uniform numbers from [0, 1)."""
        return tf.random.uniform(shape, dtype=dtype)

    def integers(self, shape: Sequence[int], low: int | tf.Tensor, high: int | tf.Tensor) -> tf.Tensor:
        """Uniform int32 numbers from [low, high)."""
        return tf.random.uniform(shape, low, high, dtype=tf.int32)

    def random_labels(self, minibatch_size: int) -> tf.Tensor:
        """Labels [minibatch_size, label_size] drawn from the data set; [minibatch_size, 0] without labels."""
        if self._label_table is None or self._label_table.shape[1] == 0:
            return tf.zeros([minibatch_size, 0])
        rows = self.integers([minibatch_size], 0, self._label_table.shape[0])
        if isinstance(self._label_table, OneHotLabels):
            return self._label_table.gather(rows)
        return tf.gather(self._label_table, rows)

    @property
    def pixel_scale(self) -> float:
        """What one pixel of the images of this pass counts, seen from the final resolution: 4^-floor(lod).

        An image of a stage stands for its enlargement. A gradient with respect to its pixels spreads over
        2^floor(lod) × 2^floor(lod) pixels each; the sum of squares over the enlargement is this much smaller.
        """
        return 4.0 ** -self.stage.lod_floor if self.stage_size else 1.0

    def state(self, name: str):
        """The state variable of that name that a loss function declared."""
        return self._loss_state[name]

    def value(self, variable) -> tf.Tensor:
        """Current value of a state variable, updates of this pass included."""
        return tf.convert_to_tensor(variable)

    def update(self, variable, value: tf.Tensor) -> None:
        """Gives a state variable (moving average and the like) a new value."""
        variable.assign(value)

    def report(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Reports values under a TensorBoard name; returns them unchanged."""
        return values

    def feature(self, name: str, value: tf.Tensor) -> tf.Tensor:
        """Keeps the output of a layer where features were asked for; returns it unchanged."""
        if self.features is not None:
            self.features[name] = value
        return value


class StepContext(Context):
    """One pass of a training step: reproducible random numbers; updates and reports are only collected.

    Args:
        seed: int32 tensor [2]. The n-th draw of the pass is a function of seed and n alone.
        label_table: float32 [num_images, label_size], the labels to draw from, or OneHotLabels.
        loss_state: {name: variable}, the state that the loss functions declare.
        stage: training.growing.Stage of a growing run; its images have the size of the stage.
        progress: Share of the training that is done.
    """

    def __init__(self, seed: tf.Tensor, label_table: tf.Tensor | OneHotLabels | None = None,
                 loss_state: dict | None = None, stage=None, progress: float | tf.Tensor = 1.0):
        super().__init__(label_table, loss_state=loss_state, stage=stage)
        self.progress = progress
        self.stage_size = stage is not None
        self._seed = seed
        self._num_draws = 0
        self._updates: dict[int, tuple] = {}
        self.reports: dict[str, tf.Tensor] = {}

    def _next_seed(self) -> tf.Tensor:
        self._num_draws += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._num_draws)

    def normal(self, shape, dtype=tf.float32):
        return tf.random.stateless_normal(shape, self._next_seed(), dtype=dtype)

    def uniform(self, shape, dtype=tf.float32):
        return tf.random.stateless_uniform(shape, self._next_seed(), dtype=dtype)

    def integers(self, shape, low, high):
        return tf.random.stateless_uniform(shape, self._next_seed(), low, high, dtype=tf.int32)

    def value(self, variable):
        return self._updates[id(variable)][1] if id(variable) in self._updates else super().value(variable)

    def update(self, variable, value):
        self._updates[id(variable)] = (variable, value)

    def report(self, name, values):
        # Reduced here, so that what leaves the replica is four numbers however large the tensor.
        moments = reduce_moments(values)
        self.reports[name] = self.reports[name] + moments if name in self.reports else moments
        return values

    @property
    def updates(self) -> list[tuple]:
        """[(variable, new value)] in the order of the first update."""
        return list(self._updates.values())
