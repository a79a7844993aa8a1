"""What people do to networks: change, copy, keep several in a file, look at their insides."""

# ruff: noqa: B905

import copy
import io
import pickle
import sys

import numpy as np

import dnnlib.tflib as tflib
from training import misc

tflib.init_tf()
snapshot, out_pkl = sys.argv[1:]
with open(snapshot, 'rb') as f:
    G, D, Gs = pickle.load(f)
z = np.random.RandomState(0).randn(3, Gs.input_shape[1])
kwargs = dict(truncation_psi=0.7, randomize_noise=False)
reference = Gs.run(z, None, **kwargs)

# Several in one file, one after the other.
stream = io.BytesIO()
pickle.dump((G, D, Gs), stream)
pickle.dump(Gs.components.synthesis, stream)
pickle.dump({'ema': Gs, 'kimg': 25000}, stream, protocol=pickle.HIGHEST_PROTOCOL)
stream.seek(0)
_, D2, Gs2 = pickle.load(stream)
synthesis = pickle.load(stream)
ema = pickle.load(stream)['ema']
w = Gs.components.mapping.run(z, None)
same = [Gs2.run(z, None, **kwargs), ema.run(z, None, **kwargs), copy.deepcopy(Gs).run(z, None, **kwargs)]
misc.save_pkl((G, D, Gs), out_pkl)
same.append(misc.load_pkl(out_pkl)[2].run(z, None, **kwargs))
syntheses = [synthesis.run(w, randomize_noise=False), Gs.components.synthesis.run(w, randomize_noise=False)]

# Another network from this one.
swapped = Gs.clone('Swapped')
swapped.components.mapping.copy_vars_from(G.components.mapping)
blend = Gs.clone('Blend')
low = {name: var for name, var in G.vars.items() if '4x4' in name or '8x8' in name}
for name in low:
    blend.set_var(name, tflib.lerp(G.get_var(name), Gs.get_var(name), 0.5))
plain = Gs.convert('training.networks_stylegan2.G_main', new_name='Plain', truncation_psi=None)

# Its insides.
names = list(Gs.trainables.keys())
total = sum(np.prod(var.shape.as_list()) for var in Gs.trainables.values())
const = Gs.get_var('G_synthesis/4x4/Const/const')
noise0 = Gs.vars['G_synthesis/noise0']
values = tflib.run([noise0, Gs.own_vars['dlatent_avg']])
by_network = {var: value for var, value in zip([noise0], values)}
noise_index = list(Gs.vars.values()).index(noise0)
assert noise0 in list(Gs.vars.values()) and by_network[noise0] is values[0]
numbers = noise0.eval(), noise0.name, noise0.get_shape().as_list(), noise0.dtype.as_numpy_dtype
resolution = Gs.static_kwargs.resolution
shapes = Gs.input_shapes, Gs.output_shapes, Gs.num_inputs, Gs.num_outputs, Gs.input_names, Gs.output_names
D.print_layers(title='Discriminator', hide_layers_with_no_params=True)
