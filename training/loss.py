"""Loss functions of StyleGAN2.

Every function is called as `func(G, D, ctx, minibatch_size, [reals, labels,] **kwargs)`, with reals
[N, H, W, C] and labels [N, label_size] for a discriminator, and returns two parts, `(loss, reg)`: functions
without arguments that give one number per sample, the loss [N, 1] and the regularization term [N]; reg is
None where there is none. What is minimized is the mean. They are separate because lazy regularization
(StyleGAN2, section 3.1) evaluates them at different intervals.

Random numbers come from `ctx`, in the official order. Sources: Goodfellow et al. 2014 (logistic), Arjovsky et
al. 2017 and Gulrajani et al. 2017 (WGAN, WGAN-GP), Mescheder et al. 2018 (R1, R2), Lim & Ye 2017 (hinge),
Karras et al. 2019 (path length regularization).
"""

import functools
from collections.abc import Callable

import tensorflow as tf

Part = Callable[[], tf.Tensor]
Parts = tuple[Part, Part | None]


def _generate(G, ctx, minibatch_size, labels, **kwargs):
    """Fakes of random latents for the given labels."""
    latents = ctx.normal([minibatch_size, *G.input_shapes[0][1:]], dtype=tf.as_dtype(G.compute_dtype))
    return G(latents, labels, is_training=True, ctx=ctx, **kwargs)


def _score(D, ctx, images, labels, name):
    """Scores [N, 1] of images, reported under Loss/scores/<name>."""
    return ctx.report(f'Loss/scores/{name}', D(images, labels, is_training=True, ctx=ctx))


def _generator_loss(G, D, ctx, minibatch_size, of_scores) -> Part:
    def loss():
        labels = ctx.random_labels(minibatch_size)
        return of_scores(_score(D, ctx, _generate(G, ctx, minibatch_size, labels), labels, 'fake'))
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


def G_hinge(G, D, ctx, minibatch_size: int) -> Parts:
    """Generator of the hinge loss, the same as that of WGAN: -D(fake)."""
    return G_wgan(G, D, ctx, minibatch_size)


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


def _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, of_scores) -> tuple[Part, Part]:
    """The loss of_scores(real scores, fake scores), and the fakes for whoever needs them in the same pass."""
    fakes = functools.cache(lambda: _generate(G, ctx, minibatch_size, labels))

    def loss():
        fake_scores = _score(D, ctx, fakes(), labels, 'fake')
        return of_scores(_score(D, ctx, reals, labels, 'real'), fake_scores)

    return loss, fakes


def _logistic(real_scores, fake_scores):
    return tf.nn.softplus(fake_scores) + tf.nn.softplus(-real_scores)


def D_logistic(G, D, ctx, minibatch_size: int, reals, labels) -> Parts:
    """Logistic loss: -log(1 - logistic(D(fake))) - log(logistic(D(real)))."""
    return _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, _logistic)[0], None


def _gradient_power(D, ctx, images, labels, name):
    """Sum of squares of d D(images) / d images, per sample [N]."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(_score(D, ctx, images, labels, name))
    return tf.reduce_sum(tf.square(tape.gradient(total, images)), axis=[1, 2, 3])


def D_logistic_r1(G, D, ctx, minibatch_size: int, reals, labels, gamma: float = 10.0) -> Parts:
    """Logistic loss with R1: gamma/2 · |dD/dx|² at reals (Mescheder et al. 2018, equation 9)."""
    loss, _ = _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, _logistic)

    def reg():
        penalty = ctx.report('Loss/gradient_penalty', _gradient_power(D, ctx, reals, labels, 'real'))
        return penalty * (gamma * 0.5)

    return loss, reg


def D_logistic_r2(G, D, ctx, minibatch_size: int, reals, labels, gamma: float = 10.0) -> Parts:
    """Logistic loss with R2: gamma/2 · |dD/dx|² at fakes (Mescheder et al. 2018, equation 10)."""
    loss, fakes = _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, _logistic)

    def reg():
        penalty = ctx.report('Loss/gradient_penalty', _gradient_power(D, ctx, fakes(), labels, 'fake'))
        return penalty * (gamma * 0.5)

    return loss, reg


def _wasserstein(ctx, wgan_epsilon):
    """D(fake) - D(real) + epsilon·D(real)², the last term against drift (ProGAN, appendix A.1)."""
    def of_scores(real_scores, fake_scores):
        epsilon_penalty = ctx.report('Loss/epsilon_penalty', tf.square(real_scores))
        return fake_scores - real_scores + epsilon_penalty * wgan_epsilon
    return of_scores


def D_wgan(G, D, ctx, minibatch_size: int, reals, labels, wgan_epsilon: float = 0.001) -> Parts:
    """Wasserstein loss: D(fake) - D(real), with a small penalty against drift."""
    of_scores = _wasserstein(ctx, wgan_epsilon)
    return _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, of_scores)[0], None


def _interpolation_penalty(D, ctx, minibatch_size, reals, labels, fakes, wgan_lambda, wgan_target) -> Part:
    """lambda/target²·(|dD/dx| - target)² at random points between reals and fakes (Gulrajani et al. 2017)."""
    def reg():
        images = fakes()
        factors = ctx.uniform([minibatch_size, 1, 1, 1], dtype=reals.dtype)
        power = _gradient_power(D, ctx, reals + (images - reals) * factors, labels, 'mixed')
        norms = ctx.report('Loss/mixed_norms', tf.sqrt(power))
        penalty = ctx.report('Loss/gradient_penalty', tf.square(norms - wgan_target))
        return penalty * (wgan_lambda / wgan_target ** 2)
    return reg


def D_wgan_gp(
    G, D, ctx, minibatch_size: int, reals, labels,
    wgan_lambda: float = 10.0,      # Weight of the gradient penalty.
    wgan_epsilon: float = 0.001,    # Weight of the penalty on the scores of reals.
    wgan_target: float = 1.0,       # Target of the gradient magnitudes.
) -> Parts:
    """Wasserstein loss with gradient penalty (Gulrajani et al. 2017; ProGAN, appendix A.1)."""
    of_scores = _wasserstein(ctx, wgan_epsilon)
    loss, fakes = _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, of_scores)
    reg = _interpolation_penalty(D, ctx, minibatch_size, reals, labels, fakes, wgan_lambda, wgan_target)
    return loss, reg


def _hinge(real_scores, fake_scores):
    return tf.maximum(0.0, 1 + fake_scores) + tf.maximum(0.0, 1 - real_scores)


def D_hinge(G, D, ctx, minibatch_size: int, reals, labels) -> Parts:
    """Hinge loss: max(0, 1 + D(fake)) + max(0, 1 - D(real))."""
    return _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, _hinge)[0], None


def D_hinge_gp(
    G, D, ctx, minibatch_size: int, reals, labels,
    wgan_lambda: float = 10.0,      # Weight of the gradient penalty.
    wgan_target: float = 1.0,       # Target of the gradient magnitudes.
) -> Parts:
    """Hinge loss with the gradient penalty of WGAN-GP."""
    loss, fakes = _discriminator_loss(G, D, ctx, minibatch_size, reals, labels, _hinge)
    reg = _interpolation_penalty(D, ctx, minibatch_size, reals, labels, fakes, wgan_lambda, wgan_target)
    return loss, reg
