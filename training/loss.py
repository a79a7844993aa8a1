"""Loss functions of ProGAN, StyleGAN, StyleGAN2 and BigGAN.

Every function is called as `func(G, D, ctx, minibatch_size, [reals, labels,] **kwargs)`, with reals
[N, H, W, C] and labels [N, label_size] for a discriminator, and returns two parts, `(loss, reg)`: functions
without arguments that give one number per sample, the loss [N, 1] and the regularization term [N]; reg is
None where there is none. What is minimized is the mean. They are separate because lazy regularization
(StyleGAN2, section 3.1) evaluates them at different intervals; ProGAN and StyleGAN minimize their sum.

Images have the final resolution or, in the training steps of growing networks, that of the stage: the numbers
are the same (`Context.pixel_scale`). A discriminator returns scores [N, 1], or (scores, label logits
[N, label_size]) with which the AC-GAN losses train it to classify as well.

Random numbers come from `ctx`, in the official order. Sources: Goodfellow et al. 2014 (logistic), Arjovsky et
al. 2017 and Gulrajani et al. 2017 (WGAN, WGAN-GP), Mescheder et al. 2018 (R1, R2), Lim & Ye 2017 (hinge),
Odena et al. 2017 (AC-GAN), Karras et al. 2019 (path length regularization), Brock et al. 2018 (BigGAN).
"""

from collections.abc import Callable

import tensorflow as tf

from training.latents import draw

Part = Callable[[], tf.Tensor]
Parts = tuple[Part, Part | None]


def _generate(G, ctx, minibatch_size, labels, **kwargs):
    """Fakes of random latents for the given labels."""
    shape, dtype = [minibatch_size, *G.input_shapes[0][1:]], tf.as_dtype(G.compute_dtype)
    distribution = getattr(G, 'latent_distribution', 'normal')
    if distribution == 'normal':
        latents = ctx.normal(shape, dtype=dtype)
    else:
        latents = tf.cast(draw(distribution, ctx, shape, ctx.progress), dtype)
    return G(latents, labels, is_training=True, ctx=ctx, **kwargs)


def _discriminate(D, ctx, images, labels, name):
    """Scores [N, 1] of images, reported under Loss/scores/<name>, and label logits or None."""
    output = D(images, labels, is_training=True, ctx=ctx)
    scores, logits = output if isinstance(output, list | tuple) else (output, None)
    if logits is not None and logits.shape[1] == 0:
        logits = None
    return ctx.report(f'Loss/scores/{name}', scores), logits


def _label_penalty(ctx, labels, logits, name, cond_weight):
    """The AC-GAN term: cross entropy of labels and logits [N, 1]; 0 where there are no labels."""
    if logits is None:
        return 0.0
    penalty = tf.nn.softmax_cross_entropy_with_logits(labels, logits)[:, tf.newaxis]
    return ctx.report(f'Loss/label_penalty_{name}', penalty) * cond_weight


def _generator_loss(G, D, ctx, minibatch_size, of_scores, cond_weight=None) -> Part:
    """The loss of_scores(scores of fakes), with the AC-GAN term where it has a weight."""
    def loss():
        labels = ctx.random_labels(minibatch_size)
        scores, logits = _discriminate(D, ctx, _generate(G, ctx, minibatch_size, labels), labels, 'fake')
        values = of_scores(scores)
        if cond_weight is not None:
            values += _label_penalty(ctx, labels, logits, 'fakes', cond_weight)
        return values
    return loss


def G_logistic(G, D, ctx, minibatch_size: int) -> Parts:
    """Saturating logistic loss: log(1 - logistic(D(fake)))."""
    return _generator_loss(G, D, ctx, minibatch_size, lambda scores: -tf.nn.softplus(scores)), None


def G_logistic_ns(G, D, ctx, minibatch_size: int) -> Parts:
    """Non-saturating logistic loss: -log(logistic(D(fake)))."""
    return _generator_loss(G, D, ctx, minibatch_size, lambda scores: tf.nn.softplus(-scores)), None


def G_wgan(G, D, ctx, minibatch_size: int) -> Parts:
    """Wasserstein loss: -D(fake)."""
    return _generator_loss(G, D, ctx, minibatch_size, lambda scores: -scores), None


G_logistic_saturating, G_logistic_nonsaturating = G_logistic, G_logistic_ns   # Their names in StyleGAN.


def G_wgan_acgan(G, D, ctx, minibatch_size: int, cond_weight: float = 1.0) -> Parts:
    """Wasserstein loss plus, with labels, the cross entropy of D's label output (Odena et al. 2017)."""
    return _generator_loss(G, D, ctx, minibatch_size, lambda scores: -scores, cond_weight), None


def G_hinge(G, D, ctx, minibatch_size: int) -> Parts:
    """Generator of the hinge loss, the same as that of WGAN: -D(fake)."""
    return _generator_loss(G, D, ctx, minibatch_size, lambda scores: ctx.report('Loss/G', -scores)), None


def G_logistic_ns_pathreg(
    G, D, ctx, minibatch_size: int,
    pl_minibatch_shrink: int = 2,   # The regularizer uses fresh fakes, 1/shrink of the minibatch size.
    pl_decay: float = 0.01,         # Decay of the moving average of the path length, the target `a`.
    pl_weight: float = 2.0,         # Weight of the penalty.
) -> Parts:
    """Non-saturating logistic loss with path length regularization (StyleGAN2, section 3.2, equation 4)."""
    loss, _ = G_logistic_ns(G, D, ctx, minibatch_size)

    def reg():
        pl_minibatch = max(minibatch_size // pl_minibatch_shrink, 1)
        with tf.GradientTape() as tape:
            labels = ctx.random_labels(pl_minibatch)
            images, dlatents = _generate(G, ctx, pl_minibatch, labels, return_dlatents=True)
            # Scaled so that the expected length does not depend on the resolution.
            height, width = images.shape[1:3]
            scale = tf.sqrt(tf.cast(height * width, images.dtype))
            noise = ctx.normal(tf.shape(images), images.dtype) / scale
            total = tf.reduce_sum(images * noise)
        gradients = tape.gradient(total, dlatents)
        lengths = tf.sqrt(tf.reduce_mean(tf.reduce_sum(tf.square(gradients), axis=2), axis=1))
        ctx.report('Loss/pl_lengths', lengths)
        mean = ctx.state('pl_mean')
        before = tf.cast(ctx.value(mean), lengths.dtype)
        # The penalty is relative to the updated average, through which gradients flow.
        target = before + pl_decay * (tf.reduce_mean(lengths) - before)
        ctx.update(mean, target)
        return ctx.report('Loss/pl_penalty', tf.square(lengths - target)) * pl_weight

    return loss, reg


G_logistic_ns_pathreg.state = {'pl_mean': 0.0}


def _computed_once(func: Callable) -> property:
    """A property that is computed when it is first read.

    functools.cached_property has a lock up to Python 3.11, behind which replicas would wait for each other.
    """
    def get(self):
        if func.__name__ not in self._known:
            self._known[func.__name__] = func(self)
        return self._known[func.__name__]
    return property(get, doc=func.__doc__)


class _Pass:
    """What loss and regularizer of a discriminator share, computed once: one tape must record both."""

    def __init__(self, G, D, ctx, minibatch_size, reals, labels):
        self.G, self.D, self.ctx, self.minibatch_size = G, D, ctx, minibatch_size
        self.reals, self.labels = reals, labels
        self._known: dict = {}
        self._outputs: dict[str, tuple] = {}

    @_computed_once
    def fakes(self) -> tf.Tensor:
        """Images generated for the labels of the reals."""
        return _generate(self.G, self.ctx, self.minibatch_size, self.labels)

    @_computed_once
    def mixed(self) -> tf.Tensor:
        """Random points on the lines between reals and fakes."""
        images = self.fakes
        factors = self.ctx.uniform([self.minibatch_size, 1, 1, 1], dtype=self.reals.dtype)
        return self.reals + (images - self.reals) * factors

    def _output(self, name: str) -> tuple:
        """(images, scores, label logits or None, tape) of the 'fake', 'real' or 'mixed' images."""
        if name not in self._outputs:
            images = self.reals if name == 'real' else self.fakes if name == 'fake' else self.mixed
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                scores, logits = _discriminate(self.D, self.ctx, images, self.labels, name)
            self._outputs[name] = images, scores, logits, tape
        return self._outputs[name]

    def scores(self, name: str) -> tf.Tensor:
        """Scores [N, 1] of the 'fake' or 'real' images."""
        return self._output(name)[1]

    def label_penalty(self, name: str, cond_weight: float):
        """The AC-GAN term [N, 1] of the 'fake' or 'real' images."""
        return _label_penalty(self.ctx, self.labels, self._output(name)[2], f'{name}s', cond_weight)

    def gradient_power(self, name: str) -> tf.Tensor:
        """Sum of squares of d D(images) / d images, per sample [N], for images of the final resolution."""
        images, scores, _, tape = self._output(name)
        power = tf.reduce_sum(tf.square(tape.gradient(scores, images)), axis=[1, 2, 3])
        scale = self.ctx.pixel_scale
        return power if scale == 1 else power * scale


def _logistic(run: _Pass):
    return tf.nn.softplus(run.scores('fake')) + tf.nn.softplus(-run.scores('real'))


def D_logistic(G, D, ctx, minibatch_size: int, reals, labels) -> Parts:
    """Logistic loss: -log(1 - logistic(D(fake))) - log(logistic(D(real)))."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    return lambda: _logistic(run), None


def D_logistic_r1(G, D, ctx, minibatch_size: int, reals, labels, gamma: float = 10.0) -> Parts:
    """Logistic loss with R1: gamma/2 · |dD/dx|² at reals (Mescheder et al. 2018, equation 9)."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    return lambda: _logistic(run), lambda: _simple_penalty(run, 'real', 'gradient_penalty', gamma)


def D_logistic_r2(G, D, ctx, minibatch_size: int, reals, labels, gamma: float = 10.0) -> Parts:
    """Logistic loss with R2: gamma/2 · |dD/dx|² at fakes (Mescheder et al. 2018, equation 10)."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    return lambda: _logistic(run), lambda: _simple_penalty(run, 'fake', 'gradient_penalty', gamma)


def D_logistic_simplegp(
    G, D, ctx, minibatch_size: int, reals, labels,
    r1_gamma: float = 10.0,         # Weight of R1, the gradient penalty at reals.
    r2_gamma: float = 0.0,          # Weight of R2, the gradient penalty at fakes.
) -> Parts:
    """Logistic loss with R1 and R2, each where its weight is not 0 (StyleGAN, appendix C)."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    terms = [term for term in [('real', 'r1_penalty', r1_gamma), ('fake', 'r2_penalty', r2_gamma)] if term[2]]
    reg = (lambda: sum(_simple_penalty(run, *term) for term in terms)) if terms else None
    return lambda: _logistic(run), reg


def _simple_penalty(run: _Pass, name: str, report: str, gamma: float):
    """gamma/2 · |dD/dx|² [N] at the 'real' or 'fake' images."""
    return run.ctx.report(f'Loss/{report}', run.gradient_power(name)) * (gamma * 0.5)


def _wasserstein(run: _Pass, wgan_epsilon: float):
    """D(fake) - D(real) + epsilon·D(real)², the last term against drift (ProGAN, appendix A.1)."""
    fake_scores, real_scores = run.scores('fake'), run.scores('real')
    epsilon_penalty = run.ctx.report('Loss/epsilon_penalty', tf.square(real_scores))
    return fake_scores - real_scores + epsilon_penalty * wgan_epsilon


def D_wgan(G, D, ctx, minibatch_size: int, reals, labels, wgan_epsilon: float = 0.001) -> Parts:
    """Wasserstein loss: D(fake) - D(real), with a small penalty against drift."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    return lambda: _wasserstein(run, wgan_epsilon), None


def _gradient_penalty(run: _Pass, wgan_lambda: float, wgan_target: float):
    """lambda/target²·(|dD/dx| - target)² at random points between reals and fakes (Gulrajani et al. 2017)."""
    norms = run.ctx.report('Loss/mixed_norms', tf.sqrt(run.gradient_power('mixed')))
    penalty = run.ctx.report('Loss/gradient_penalty', tf.square(norms - wgan_target))
    return penalty * (wgan_lambda / wgan_target ** 2)


def D_wgan_gp(
    G, D, ctx, minibatch_size: int, reals, labels,
    wgan_lambda: float = 10.0,      # Weight of the gradient penalty.
    wgan_epsilon: float = 0.001,    # Weight of the penalty on the scores of reals.
    wgan_target: float = 1.0,       # Target of the gradient magnitudes.
) -> Parts:
    """Wasserstein loss with gradient penalty (Gulrajani et al. 2017; ProGAN, appendix A.1)."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    return lambda: _wasserstein(run, wgan_epsilon), lambda: _gradient_penalty(run, wgan_lambda, wgan_target)


def D_wgangp_acgan(
    G, D, ctx, minibatch_size: int, reals, labels,
    wgan_lambda: float = 10.0,      # Weight of the gradient penalty.
    wgan_epsilon: float = 0.001,    # Weight of the penalty on the scores of reals.
    wgan_target: float = 1.0,       # Target of the gradient magnitudes.
    cond_weight: float = 1.0,       # Weight of the cross entropies of labels.
) -> Parts:
    """WGAN-GP plus, with labels, the cross entropies of D's label output at reals and fakes (AC-GAN)."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)

    def loss():
        values = _wasserstein(run, wgan_epsilon)
        return values + run.label_penalty('real', cond_weight) + run.label_penalty('fake', cond_weight)

    return loss, lambda: _gradient_penalty(run, wgan_lambda, wgan_target)


def _hinge(run: _Pass):
    return tf.maximum(0.0, 1 + run.scores('fake')) + tf.maximum(0.0, 1 - run.scores('real'))


def D_hinge(G, D, ctx, minibatch_size: int, reals, labels) -> Parts:
    """Hinge loss: max(0, 1 + D(fake)) + max(0, 1 - D(real))."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    return lambda: _hinge(run), None


def D_hinge_gp(
    G, D, ctx, minibatch_size: int, reals, labels,
    wgan_lambda: float = 10.0,      # Weight of the gradient penalty.
    wgan_target: float = 1.0,       # Target of the gradient magnitudes.
) -> Parts:
    """Hinge loss with the gradient penalty of WGAN-GP."""
    run = _Pass(G, D, ctx, minibatch_size, reals, labels)
    return lambda: _hinge(run), lambda: _gradient_penalty(run, wgan_lambda, wgan_target)


class _JointPass:
    """One pass of a discriminator over fakes and reals together, as BigGAN trains it.

    What a pass changes in D, the singular vectors of its weights, changes once per minibatch. Fakes have
    labels of their own, drawn like those that G is trained with.
    """

    def __init__(self, G, D, ctx, minibatch_size, reals, labels):
        self.G, self.D, self.ctx, self.minibatch_size = G, D, ctx, minibatch_size
        self.reals, self.labels = reals, labels
        self._known: dict = {}

    @_computed_once
    def _scores(self) -> tuple:
        """(scores of the fakes [N, 1], of the reals [N, 1], tape that has seen the reals)."""
        size = self.minibatch_size
        fake_labels = self.ctx.random_labels(size)
        fakes = _generate(self.G, self.ctx, size, fake_labels)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.reals)
            output = self.D(tf.concat([fakes, self.reals], axis=0),
                            tf.concat([fake_labels, tf.cast(self.labels, fake_labels.dtype)], axis=0),
                            is_training=True, ctx=self.ctx)
            scores = output[0] if isinstance(output, list | tuple) else output
            fake_scores, real_scores = scores[:size], scores[size:]
        report = self.ctx.report
        return report('Loss/scores/fake', fake_scores), report('Loss/scores/real', real_scores), tape

    def loss(self, of_fakes: Callable, of_reals: Callable) -> tf.Tensor:
        """of_fakes(scores of fakes) + of_reals(scores of reals) [N, 1]."""
        fake_scores, real_scores, _ = self._scores
        return self.ctx.report('Loss/D_fake', of_fakes(fake_scores)) + self.ctx.report(
            'Loss/D_real', of_reals(real_scores))

    def penalty(self, gamma: float) -> tf.Tensor:
        """R1: gamma/2 · |dD/dx|² at the reals [N]. Where the loss is not wanted as well, of them alone."""
        if '_scores' in self._known:
            _, scores, tape = self._scores
        else:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(self.reals)
                scores, _ = _discriminate(self.D, self.ctx, self.reals, self.labels, 'real')
        power = tf.reduce_sum(tf.square(tape.gradient(scores, self.reals)), axis=[1, 2, 3])
        return self.ctx.report('Loss/gradient_penalty', power * self.ctx.pixel_scale) * (gamma * 0.5)


def _joint(of_fakes, of_reals, gamma, *args) -> Parts:
    run = _JointPass(*args)
    return lambda: run.loss(of_fakes, of_reals), (lambda: run.penalty(gamma)) if gamma else None


def D_hinge_joint(
    G, D, ctx, minibatch_size: int, reals, labels,
    gamma: float = 0.0,             # Weight of R1; 0 = without.
) -> Parts:
    """Hinge loss in one pass over fakes and reals, optionally with R1 (BigGAN, section 3; appendix H)."""
    return _joint(lambda scores: tf.maximum(0.0, 1 + scores), lambda scores: tf.maximum(0.0, 1 - scores),
                  gamma, G, D, ctx, minibatch_size, reals, labels)


def D_logistic_joint(
    G, D, ctx, minibatch_size: int, reals, labels,
    gamma: float = 0.0,             # Weight of R1; 0 = without.
) -> Parts:
    """Logistic loss in one pass over fakes and reals, optionally with R1; G_logistic_ns goes with it."""
    return _joint(tf.nn.softplus, lambda scores: tf.nn.softplus(-scores), gamma,
                  G, D, ctx, minibatch_size, reals, labels)
